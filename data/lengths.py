"""How long prompts and responses are in tokens, against the limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data import encode
from data.config import DataSettings
from data.findings import Finding, opening
from data.store import ROWS_AT_ONCE, Store

if TYPE_CHECKING:
    from rlhf.template import Template

SAMPLED = 20_000  # rows that are measured, evenly spread over the sources
LOSS_THAT_WARNS = 0.10
WIDTH = 40  # characters of the longest bar
MERE_WORD = 20  # characters that prompts may have in common at their beginning by chance


def token_lengths(stores: Sequence[Store], template: Template) -> dict[str, np.ndarray]:
    """Tokens of prompts, chosen and rejected responses (end token included) of a sample of rows."""
    total = sum(len(s.dataset) for s in stores)
    every = max(1, -(-total // SAMPLED))
    found: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    encoder = encode.Encoder(template, encode.Limits(2**31, 2**31), "prompts")
    for store in stores:
        sample = store.dataset.select(range(0, len(store.dataset), every))
        for batch in sample.iter(batch_size=ROWS_AT_ONCE):
            rows = [i for i, prompt in enumerate(batch["prompt"]) if prompt]  # type: ignore[call-overload]
            part = {n: [batch[n][i] for i in rows] for n in ("prompt", "where")}  # type: ignore[call-overload]
            found["prompt"] += encoder({**part, "source": [0] * len(rows)})["length"]
            for name in ("chosen", "rejected"):
                texts = [batch[name][i] for i in rows if batch[name][i] is not None]  # type: ignore[call-overload]
                found[name] += [len(ids) for ids in encoder.responses(texts, [0] * len(texts))]
    return {name: np.array(lengths, dtype=np.int64) for name, lengths in found.items() if lengths}


def histogram(name: str, lengths: np.ndarray, limit: int) -> list[str]:
    """Lines of a bar chart in powers of two, with the limit where it falls."""
    edges = [1]
    while edges[-1] <= int(lengths.max()):
        edges.append(edges[-1] * 2)
    if limit + 1 < edges[-1]:
        edges = sorted({e for e in edges if e != limit} | {limit + 1})
    counts, _ = np.histogram(lengths, bins=[0, *edges[1:]])
    quantiles = ", ".join(f"{q:.0%} {int(np.quantile(lengths, q))}" for q in (0.5, 0.9, 0.99))
    lines = [f"tokens of {name} ({len(lengths):,} measured; {quantiles}, longest {int(lengths.max())}):"]
    low = 0
    for high, count in zip(edges[1:], counts.tolist(), strict=True):
        bar = "█" * -(-count * WIDTH // max(1, int(counts.max())))
        over = "  over the limit" if low > limit else ""
        if count:
            lines.append(f"{low:>7}-{high - 1:<6} {bar} {count:,}{over}")
        low = high
    return lines


def of_lengths(stores: Sequence[Store], lengths: dict[str, np.ndarray], settings: DataSettings) -> list[Finding]:
    """What the limits cut or drop."""
    found = []
    for name, tokens in lengths.items():
        prompt = name == "prompt"
        limit = settings.max_prompt_length if prompt else settings.max_response_length
        policy = settings.prompt_truncation if prompt else settings.response_truncation
        over = int((tokens > limit).sum())
        if not over:
            continue
        what = f"{over:,} of {len(tokens):,} {name}{'s' if prompt else ' responses'} ({over / len(tokens):.1%})"
        fate = "left out" if policy == "drop" else f"cut ({policy})"
        level = "warning" if over > LOSS_THAT_WARNS * len(tokens) else "note"
        found.append(Finding(level, f"{what} are longer than {limit} tokens and are {fate}"))
        if prompt and policy == "keep_end":
            found += [
                Finding(
                    "warning",
                    f"{store.source.name}: all prompts begin with “{start[:60]}”, which keep_end removes from "
                    "prompts that are too long; raise max_prompt_length, or use prompt_truncation keep_start or drop",
                )
                for store in stores
                if len(start := opening(store)) > MERE_WORD
            ]
    return found
