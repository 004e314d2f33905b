"""Several demonstrations in one row, so that little of a batch is padding. Attention never crosses them
(`rlhf.models.packed_rows`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from data.rows import Rows


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows go together: (order, starts); pack p holds the rows `order[starts[p]:starts[p + 1]]`.

    Best fit, longest first: each row goes into the fullest pack that has room for it, so packs are few. Lengths 5, 4, 3
    and 2 with room for 7 make the packs [5, 2] and [4, 3].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(f"a row of {lengths.max()} tokens does not fit a pack of {capacity}")
    packs: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # packs by the room that they have left
    any_with = 0  # bit r is set where some pack has room r
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        fitting = any_with >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                any_with &= ~(1 << room)
        else:
            room, number = capacity, len(packs)
            packs.append([])
        packs[number].append(row)
        with_room[room - length].append(number)
        any_with |= 1 << (room - length)
    starts = np.cumsum([0] + [len(p) for p in packs])
    return np.array([row for p in packs for row in p], dtype=np.int64), starts


# Families (`config.model_type`) whose packed rows have the loss of the rows one by one: tests/data/test_packing.py
# compares them, with windows shorter than the rows. Others may attend, or carry a state, across demonstrations.
PACKABLE = {
    "apertus", "arcee", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "diffllama",
    "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon", "flex_olmo", "gemma", "gemma2", "gemma3", "gemma3_text",
    "gemma4_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj",
    "granite", "granitemoe", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "llama", "minimax_m2", "ministral",
    "ministral3", "mistral", "mixtral", "mpt", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi",
    "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
    "xglm",
}  # fmt: skip
# The kinds of layers that these tests have; a state or a convolution runs on into the next demonstration.
_KINDS = {"full_attention", "sliding_attention"}


def packing_problem(config: Mapping[str, Any]) -> str | None:
    """Why the demonstrations of a model with this config.json cannot be packed, or None."""
    family = str(config.get("model_type") or "")
    kinds = set(config.get("layer_types") or ()) | set((config.get("text_config") or {}).get("layer_types") or ())
    if family not in PACKABLE:
        what = f"models of type {family}" if family else "a model whose config.json has no model_type"
    elif config.get("alibi"):
        what = f"models of type {family} with ALiBi"
    elif kinds - _KINDS:
        what = f"layers of type {min(kinds - _KINDS)}"
    else:
        return None
    return f"step1_sft.packing is not tested with {what}: attention could cross demonstrations; leave it out"


class PackedRows(Sequence[dict[str, Any]]):
    """Packs of demonstrations: rows with `input_ids` and `learned` (of all of them, one after another), and the
    `lengths` of the demonstrations."""

    def __init__(self, rows: Rows, capacity: int) -> None:
        self._rows = rows
        self._order, self._starts = pack(rows.lengths, capacity)
        totals = np.cumsum(np.concatenate([[0], rows.lengths[self._order]]))
        self.lengths = np.diff(totals[self._starts]).astype(np.int32)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> dict[str, Any]:
        members = self._order[self._starts[int(index)] : self._starts[int(index) + 1]]
        rows = [self._rows[i] for i in members]
        lengths = [len(row["input_ids"]) for row in rows]
        starts = accumulate(lengths, initial=0)
        return {
            "input_ids": [token for row in rows for token in row["input_ids"]],
            "learned": [start + edge for start, row in zip(starts, rows, strict=False) for edge in row["learned"]],
            "lengths": lengths,
            "length": sum(lengths),
        }
