"""How many weights a model has, by its sizes or by the headers of its safetensors files; and how many adapters add."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from rlhf.memory.shapes import Shape

_OUTPUT_EMBEDDINGS = ("lm_head.", "embed_out.")


@dataclass(frozen=True)
class Linear:
    """`count` linear layers of one name: in → out. `stacked`: experts in one tensor, which are no linear modules."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    stacked: bool = False

    @property
    def weights(self) -> int:
        return self.count * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


# The names that families give to the linear layers of attention (fused or not) and MLP.
_NAMES = {
    "gpt2": ("c_attn", "c_proj", "c_fc", "c_proj"),
    "gpt_bigcode": ("c_attn", "c_proj", "c_fc", "c_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "bloom": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "opt": ("qkv", "out_proj", "fc1", "fc2"),
}


def attention_linears(s: Shape) -> list[Linear]:
    """The linear layers of one layer's attention."""
    fused, out, *_ = _NAMES.get(s.family, ("qkv_proj", "o_proj"))
    if m := s.latent:
        queries = s.heads * (m.plain + m.rotated)
        low = [Linear("q_a_proj", s.hidden, m.query), Linear("q_b_proj", m.query, queries)]
        return [
            *(low if m.query else [Linear("q_proj", s.hidden, queries)]),
            Linear("kv_a_proj_with_mqa", s.hidden, m.key + m.rotated),
            Linear("kv_b_proj", m.key, s.heads * (m.plain + m.value)),
            Linear("o_proj", s.heads * m.value, s.hidden),
        ]
    if s.fused:
        return [
            Linear(fused, s.hidden, s.query + 2 * s.key, s.qkv_bias),
            Linear(out, s.query, s.hidden, s.out_bias),
        ]
    return [
        Linear("q_proj", s.hidden, s.query, s.qkv_bias),
        Linear("k_proj", s.hidden, s.key, s.qkv_bias),
        Linear("v_proj", s.hidden, s.key, s.qkv_bias),
        Linear(out, s.query, s.hidden, s.out_bias),
    ]


def _mlp(s: Shape, inner: int, *, count: int = 1, stacked: bool = False) -> list[Linear]:
    if s.gated:
        return [
            Linear("gate_proj", s.hidden, inner, s.mlp_bias, count, stacked),
            Linear("up_proj", s.hidden, inner, s.mlp_bias, count, stacked),
            Linear("down_proj", inner, s.hidden, s.mlp_bias, count, stacked),
        ]
    _, _, up, down = _NAMES.get(s.family, ("", "", "up_proj", "down_proj"))
    return [Linear(up, s.hidden, inner, s.mlp_bias), Linear(down, inner, s.hidden, s.mlp_bias)]


def mlp_linears(s: Shape, *, dense: bool) -> list[Linear]:
    """The linear layers of one layer's MLP or experts."""
    if s.experts is None or dense:
        return _mlp(s, s.inner)
    e = s.experts
    found = [*_mlp(s, e.inner, count=e.count, stacked=True), Linear("gate", s.hidden, e.count, stacked=True)]
    if e.shared:
        found += _mlp(s, e.shared)
    if e.shared_gate:
        found.append(Linear("shared_expert_gate", s.hidden, 1))
    return found


def layer_linears(s: Shape) -> Iterator[tuple[int, list[Linear]]]:
    """(number of layers, their linear layers), for each kind of layer."""
    attention = attention_linears(s)
    dense = s.layers if s.experts is None else s.dense_layers
    if dense:
        yield dense, attention + mlp_linears(s, dense=True)
    if s.layers - dense:
        yield s.layers - dense, attention + mlp_linears(s, dense=False)


def layer_weights(s: Shape) -> int:
    """Weights of the largest layer, its norms included."""
    return max(sum(linear.weights for linear in linears) for _, linears in layer_linears(s)) + _layer_norms(s)


def _norm(s: Shape, size: int) -> int:
    return {"layer": 2, "none": 0}.get(s.norm, 1) * size


def _layer_norms(s: Shape) -> int:
    of_heads = {
        "head": 2 * s.head_dim,
        "head_bias": 4 * s.head_dim,
        "heads": s.query + s.key,
        "all": s.query + s.key,
        "": 0,
    }[s.qk_norm]
    of_latents = s.latent.query + s.latent.key if s.latent else 0
    return s.norms * _norm(s, s.hidden) + of_heads + of_latents


def projections(s: Shape) -> list[Linear]:
    """Linear layers between embeddings and layers of another size."""
    if s.embed == s.hidden:
        return []
    return [Linear("project_in", s.embed, s.hidden), Linear("project_out", s.hidden, s.embed)]


def outer_norm_weights(s: Shape) -> int:
    """Weights of the norms outside the layers."""
    if s.family == "opt" and s.embed != s.hidden:  # opt-350m normalises after each block, and not at the end
        return 0
    return s.outer_norms * _norm(s, s.hidden)


def embedding_weights(s: Shape) -> int:
    """Weights of the table of tokens."""
    return s.vocabulary * s.embed


@lru_cache(maxsize=256)
def count_weights(s: Shape, *, scalar: bool = False) -> int:
    """All weights of a language model, tied ones once; of a reward model or critic with `scalar`."""
    layers = sum(number * (sum(li.weights for li in linears) + _layer_norms(s)) for number, linears in layer_linears(s))
    body = layers + outer_norm_weights(s) + sum(li.weights for li in projections(s)) + s.position_rows * s.hidden
    head = s.embed if scalar else (0 if s.tied else embedding_weights(s)) + (s.vocabulary if s.head_bias else 0)
    return embedding_weights(s) + body + head


def count_adapters(s: Shape, rank: int, targets: Sequence[str]) -> int:
    """Weights of LoRA adapters: rank × (in + out) for each adapted linear layer. The head has none."""
    every = list(targets) == ["all-linear"]

    def added(linears: Sequence[Linear]) -> int:
        chosen = [li for li in linears if not li.stacked and (every or li.name in targets)]
        return sum(rank * (li.inputs + li.outputs) * li.count for li in chosen)

    return sum(number * added(linears) for number, linears in layer_linears(s)) + added(projections(s))


# --- folders ----------------------------------------------------------------------------------------------------------


def weights_in(folder: Path) -> int | None:
    """The number of weights in a folder's safetensors files, from their headers; None without such files."""
    shapes = _shapes_in(folder)
    return sum(prod(shape) for shape in shapes.values()) if shapes else None


def backbone_in(folder: Path) -> int | None:
    """The same without output embedding and scalar head."""
    shapes = _shapes_in(folder)
    kept = [s for name, s in shapes.items() if not name.startswith((*_OUTPUT_EMBEDDINGS, "score."))]
    return sum(prod(shape) for shape in kept) if kept else None


def _shapes_in(folder: Path) -> Mapping[str, Sequence[int]]:
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                size = struct.unpack("<Q", opened.read(8))[0]
                header = json.loads(opened.read(min(size, 1 << 28)))
            found |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError):
            return {}  # loading will say what is wrong with it
    return found
