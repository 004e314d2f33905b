"""What the caches hold for fixed inputs. A user's cache stays valid as long as its FORMAT does; so when one of these
tests fails, code that builds a cache has changed what it builds, and the number in the key must change with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.config import SourceSettings
from data.encode import Encoder, Kind, Limits
from data.sources import parse
from data.store import Store, open_store
from data.texts import TextEncoder
from data.tokens import encoded
from rlhf.template import Template
from tests.helpers.golden import check_content
from tests.helpers.known_datasets import CASES, TEXTS

PAIRS = [{"prompt": f"q {i} é", "chosen": f"yes {i}\n", "rejected": " no", "margin": 0.25 * i} for i in range(3)]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "Fig."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Pear 🙂"},
]
SHORT = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
# One source of each shape, the last with rows that cannot be used.
SHAPES: dict[str, list[dict[str, Any]]] = {
    "pairs": PAIRS,
    "transcripts": [
        {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"},
        {"chosen": TALK, "rejected": [*TALK[:-1], {"role": "assistant", "content": "Stone"}]},
    ],
    "talks": [{"messages": TALK, "system": "unused"}, {"messages": TALK[1:3], "system": "Be brief."}],
    "instructions": [{"instruction": "Add.", "input": "1, 2", "output": "3"}, {"instruction": "Go.", "output": "ok"}],
    "ranked": [
        {"prompt": "q", "answers": ["a", "b", "c"], "scores": [1, 3, 1]},
        {"prompt": "r", "answers": ["a", "b"]},
    ],
    "answers": [{"prompt": "q", "completion": "a"}],
    "prompts": [{"prompt": TALK[:4]}, {"prompt": "q", "system": "Be brief."}],
    "texts": [{"text": "Once."}, {"text": " "}, {"text": "Upon\u2028a time."}],
    "labelled": [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completion": "b", "label": False},
        {"prompt": "r", "completion": "c", "label": False},
    ],
    "rejected": [
        {"messages": TALK, "rejected_response": "Stone"},
        {"messages": TALK, "rejected_response": "Stone", "tools": "f"},
    ],
    "scored": [{"prompt": "q", "response": t, "score": n, "id": n} for n, t in enumerate("abc")] * 2,
    "votes": [{"prompt": "q", "answer_a": "a", "answer_b": "b", "winner": side} for side in ("A", "B", "tie")],
    "questions": [{"messages": [*TALK, {"role": "user", "content": "p"}]}, {"question": "q", "answer": "4"}],
    "calls": [
        {
            "messages": [
                *TALK[:4],
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            ]
        }
    ],
    "tools": [
        {
            "messages": [
                *TALK[:4],
                {"from": "function_call", "value": '{"name": "f"}'},
                {"role": "tool", "content": "1"},
                TALK[4],
            ],
            "tools": [{"name": "f"}],
        },
        {"messages": [TALK[1], {**TALK[2], "weight": 0}, *TALK[3:], TALK[1], {**TALK[2], "train": False}]},
    ],
    "thoughts": [
        {"messages": [TALK[1], {**TALK[2], "thinking": "A fruit."}, TALK[3], {**TALK[4], "reasoning_content": "Hm."}]},
        {"prompt": "q", "content": "a", "reasoning_content": "t", "chat_template_kwargs": {"enable_thinking": True}},
    ],
    "mixed": [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"messages": TALK}],
    "written": [
        {"prompt": "q", "answers": "['a', 'b', 'c']", "scores": "[nan, 1, 2]"},
        {"messages": str(TALK)},
    ],
    "broken": [*PAIRS, {"prompt": "", "chosen": "a", "rejected": "b"}, {"prompt": "q"}],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, so that the places of rows are the same in every run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return name


def store_of(name: str, **settings: Any) -> Store:
    return open_store(parse(name), SourceSettings(data_cache_dir=Path("cache"), skip_bad_rows=True, **settings))


def test_the_format_of_the_stores(here: Path) -> None:
    """Every shape, every known dataset and every kind of file."""
    stores = {name: store_of(write(f"{name}.jsonl", rows)) for name, rows in SHAPES.items()}
    stores["mapped"] = store_of(
        write("mapped.jsonl", [{"question": "q", "good": "a", "bad": "b"}]),
        columns="prompt=question,chosen=good,rejected=bad",
    )
    for name, (rows, _) in {**CASES, **TEXTS}.items():
        stores[name] = store_of(write(f"{name.replace('/', '-')}.jsonl", rows), data_adapter=name)
    Path("list.json").write_text(json.dumps(PAIRS), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(PAIRS), "table.parquet")
    with Path("table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(PAIRS[0]))
        writer.writeheader()
        writer.writerows(PAIRS)
    stores |= {name: store_of(name) for name in ("list.json", "table.parquet", "table.csv")}
    content = {name: [list(store.dataset), store.info] for name, store in stores.items()}
    assert all(rows for rows, _ in content.values())
    check_content(content, "21b6ac89c44d3ffbd578c95f", cache="store", file="data/store.py")


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("demonstrations", "76ab9f3d83481c544518a43c"),
        ("preferences", "aa25a1453598d743bd64de37"),
        ("prompts", "03e02786d61b4928e67fbc17"),
        ("pretraining", "66c4ba782ab70fc92891ecb3"),
    ],
)
def test_the_format_of_the_tokens(kind: str, digest: str, here: Path, template: Template) -> None:
    """Rows that are kept, cut and dropped, and both sources in an order of their own."""
    texts = ["Fig 🙂", "x" * 30, "", "same", "end </s> inside"]
    prompts = ["short", "a long question, which is cut at its beginning", TALK[:4]]
    rows = [{"prompt": p, "chosen": c, "rejected": "same", "margin": 0.5} for p in prompts for c in texts]
    rows += [{"messages": TALK}, {"messages": SHORT}] if kind == "demonstrations" else []
    first, second = store_of(write("a.jsonl", rows)), store_of(write("b.jsonl", PAIRS))
    encoder: Encoder | TextEncoder = TextEncoder(template.tokenizer, 8)
    if kind == "pretraining":
        first, second = (store_of(write(f"{n}.jsonl", [{"text": f"Once {n} {i}."} for i in range(9)])) for n in "cd")
    else:
        limits = Limits(
            60 if kind == "demonstrations" else 40, 12, prompt_truncation="keep_end", response_truncation="keep_start"
        )
        chosen: Kind = kind  # type: ignore[assignment]
        encoder = Encoder(template, limits, chosen)
    table = np.array([(s, r) for s, store in enumerate((first, second)) for r in range(len(store.dataset))][::-1])
    dataset, counts = encoded([first, second], table, encoder, SourceSettings(data_cache_dir=Path("cache")))
    del counts["fingerprint"]
    content = [list(dataset), counts]
    check_content(content, digest, cache="token", file="data/tokens.py")
