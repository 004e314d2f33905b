"""docs/memory.md is what the command writes, and each card holds at least as large a model as DeepSpeed-Chat names."""

from __future__ import annotations

import re

from rlhf.memory.ladder import LADDER
from scripts.memory_table import METHODS, PAGE, THEIRS, family, filled, fits, largest, layouts


def test_the_page_is_what_the_command_writes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "run python -m scripts.memory_table"


def test_at_least_as_large_as_published() -> None:
    order = family("opt")
    for ranks, card, theirs in THEIRS:
        found = [largest(order, "opt-350m", method, ranks, card)[0] for method in METHODS]
        assert min(order.index(model) for model in found if model) <= order.index(theirs), (ranks, card)


def test_more_memory_never_holds_less() -> None:
    order = family("opt")
    for method in METHODS:
        sizes = [largest(order, "opt-350m", method, 1, card)[0] for card in (16, 24, 40, 48, 80, 141)]
        places = [order.index(model) if model else len(order) for model in sizes]
        assert places == sorted(places, reverse=True)


def test_heads_that_cannot_be_cut_do_not_fit() -> None:
    """Qwen2.5-0.5B has two key heads."""
    cut = next(layout for layout in layouts("full", 8) if layout.settings.get("inference_tp_size") == 8)
    assert not fits("qwen2.5-0.5b", "qwen2.5-0.5b", cut, 8, 141)
    assert fits("opt-125m", "opt-125m", next(layouts("full", 8)), 8, 24)


def test_the_ladder_on_the_page_is_that_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = page.partition("| change | what it costs |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", table, re.MULTILINE)
    assert [cost.partition(";")[0].strip() for _, cost in rows] == [rung.cost for rung in LADDER]
