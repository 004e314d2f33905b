"""What a config.json says of a model's size: one set of names for the fields that families call differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Norm = Literal["rms", "gemma", "layer", "plain", "none"]

# Of query, key and value; of the output; of the MLP.
_ALL_BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
# How families differ from a Llama, which has RMS norms before attention and MLP, a gated MLP, no biases and an untied
# head. norm: "layer" has a bias, "plain" is a layer norm without one, "none" has no weights. qk_norm: over each "head",
# or over "all" heads. activation: tensors of the inner size that a backward pass needs of an MLP that is not gated.
_RULES: dict[str, dict[str, Any]] = {
    "opt": dict(norm="layer", gated=False, **_ALL_BIASES, tied=True, activation=1),
    "gpt2": dict(norm="layer", gated=False, **_ALL_BIASES, tied=True, activation=5, fused=True),
    "gpt_neox": dict(norm="layer", gated=False, **_ALL_BIASES, fused=True),
    "bloom": dict(norm="layer", gated=False, **_ALL_BIASES, tied=True, fused=True, outer_norms=2, scores=True),
    "gpt_bigcode": dict(norm="layer", gated=False, **_ALL_BIASES, tied=True, fused=True),
    "gptj": dict(norm="layer", gated=False, mlp_bias=True, norms=1, head_bias=True),
    "codegen": dict(norm="layer", gated=False, mlp_bias=True, norms=1, head_bias=True, fused=True),
    "gpt_neo": dict(norm="layer", gated=False, out_bias=True, mlp_bias=True, tied=True, learned_positions=True),
    "mpt": dict(norm="plain", gated=False, tied=True, fused=True),
    "biogpt": dict(norm="layer", gated=False, **_ALL_BIASES, tied=True, learned_positions=2),
    "xglm": dict(norm="layer", gated=False, **_ALL_BIASES, tied=True),
    "phi": dict(norm="layer", gated=False, **_ALL_BIASES, norms=1, head_bias=True),
    "persimmon": dict(norm="layer", gated=False, **_ALL_BIASES, qk_norm="head_bias", fused=True),
    "starcoder2": dict(norm="layer", gated=False, **_ALL_BIASES, tied=True),
    "nemotron": dict(norm="layer", gated=False),
    "stablelm": dict(norm="layer"),
    "arcee": dict(gated=False),
    "qwen2": dict(qkv_bias=True),
    "qwen2_moe": dict(qkv_bias=True),
    "qwen3": dict(qk_norm="head"),
    "qwen3_moe": dict(qk_norm="head"),
    "olmo": dict(norm="none"),
    "olmo2": dict(qk_norm="all"),
    "olmo3": dict(qk_norm="all"),
    "olmoe": dict(qk_norm="all"),
    "minimax_m2": dict(qk_norm="all"),
    "flex_olmo": dict(qk_norm="all"),
    "gemma": dict(norm="gemma", tied=True),
    "gemma2": dict(norm="gemma", tied=True, norms=4),
    "gemma3_text": dict(norm="gemma", tied=True, norms=4, qk_norm="head"),
    "cohere": dict(norm="plain", tied=True, norms=1),
    "cohere2": dict(norm="plain", tied=True, norms=1),
    "exaone4": dict(qk_norm="head"),
    "glm": dict(),
    "glm4": dict(norms=4),
    "seed_oss": dict(qkv_bias=True),
    "hunyuan_v1_dense": dict(qk_norm="head"),
    "smollm3": dict(tied=True),
    "falcon": dict(norm="layer", gated=False, tied=True, fused=True),
}  # fmt: skip
# Families whose weights are counted to the last one (tests/rlhf/memory/test_weights.py); others are taken for a Llama.
EXACT = frozenset({
    *(name for name in _RULES), "llama", "mistral", "granite", "helium", "ministral", "ministral3", "phi3",
    "ernie4_5", "mixtral", "granitemoe", "minimax_m2", "glm4_moe", "deepseek_v2", "deepseek_v3",
})  # fmt: skip


# Families whose experts have the inner size that others give to a dense MLP.
_PLAIN_EXPERTS = ("mixtral", "olmoe", "flex_olmo", "phimoe", "granitemoe", "gpt_oss", "minimax_m2", "hunyuan_v1_moe")


@dataclass(frozen=True)
class Latent:
    """Sizes of attention over a latent vector (DeepSeek's): of the vectors, and of a head's parts."""

    query: int
    key: int
    rotated: int
    plain: int
    value: int


@dataclass(frozen=True)
class Experts:
    """A layer's experts: how many there are, how many a token visits, their inner size, that of a shared expert."""

    count: int
    used: int
    inner: int
    shared: int = 0
    shared_gate: bool = False


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model. `inner`: of the MLP; `embed`: of a token's embedding, where it is not `hidden`."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    positions: int
    embed: int
    tied: bool
    norm: Norm = "rms"
    norms: int = 2
    outer_norms: int = 1
    qk_norm: str = ""
    gated: bool = True
    activation: int = 2
    scores: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    fused: bool = False
    position_rows: int = 0
    dense_layers: int = 0  # first layers without experts
    experts: Experts | None = None
    latent: Latent | None = None
    exact: bool = True

    @property
    def query(self) -> int:
        """The size of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """The size of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The sizes that a config.json names; None where it names too few."""
    c: Mapping[str, Any] = config.get("text_config") or config
    family = str(c.get("model_type") or config.get("model_type") or "").removesuffix("_text") or "llama"
    family = family if f"{family}_text" not in _RULES else f"{family}_text"

    def first(*names: str, default: int = 0) -> int:
        return int(next((c[name] for name in names if isinstance(c.get(name), (int, float)) and c[name]), default))

    hidden = first("hidden_size", "n_embd", "d_model")
    layers = first("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = first("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
    vocabulary = first("vocab_size")
    if not (hidden and layers and heads and vocabulary):
        return None
    rules = dict(_RULES.get(family, {}))
    tied = rules.pop("tied", False)
    learned = rules.pop("learned_positions", None)
    kv_heads = first("num_key_value_heads", "num_kv_heads", default=1 if c.get("multi_query") else heads)
    positions = first("max_position_embeddings", "n_positions", "max_seq_len")
    if c.get("attention_bias") or c.get("use_qkv_bias") or c.get("qkv_bias"):
        rules["qkv_bias"] = True
        rules.setdefault("out_bias", bool(c.get("attention_bias")) and family not in ("glm", "glm4", "seed_oss"))
    if c.get("attention_out_bias"):
        rules["out_bias"] = True
    if c.get("mlp_bias"):
        rules["mlp_bias"] = True
    if family == "ernie4_5" and c.get("use_bias"):
        rules |= {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
    if family == "starcoder2" and c.get("use_bias") is False:
        rules |= {"qkv_bias": False, "out_bias": False, "mlp_bias": False}
    if family == "opt" and c.get("enable_bias") is False:
        rules |= {"qkv_bias": False, "out_bias": False, "mlp_bias": False}
    if family == "stablelm" and c.get("use_parallel_residual"):
        rules["norms"] = 1
    if family in ("cohere", "cohere2") and c.get("use_qk_norm"):
        rules["qk_norm"] = "heads"
    if family == "falcon":
        new = bool(c.get("new_decoder_architecture"))
        kv_heads = kv_heads if new else 1 if c.get("multi_query", True) else heads
        bias = bool(c.get("bias"))
        rules |= {"qkv_bias": bias, "out_bias": bias, "mlp_bias": bias}
        rules["norms"] = 2 if new or not c.get("parallel_attn", True) else 1
    experts = _experts(c, first)
    latent = None
    if first("kv_lora_rank"):
        parts = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        latent = Latent(*(first(part) for part in parts))
    default_inner = first("ffn_hidden_size", default=4 * hidden)
    return Shape(
        family=family,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=first("head_dim", default=hidden // heads),
        inner=first(
            *(("ffn_hidden_size",) if family == "falcon" else ()),
            "intermediate_size",
            "ffn_dim",
            "n_inner",
            "d_ff",
            default=default_inner,
        ),
        vocabulary=vocabulary,
        positions=positions,
        embed=first("word_embed_proj_dim", default=hidden),
        tied=bool(c.get("tie_word_embeddings", config.get("tie_word_embeddings", tied))),
        position_rows=_position_rows(family, positions, learned),
        dense_layers=first("first_k_dense_replace") if experts else 0,
        experts=experts,
        latent=latent,
        exact=family in EXACT and "vision_config" not in config,
        **rules,
    )


def _position_rows(family: str, positions: int, learned: Any) -> int:
    """Rows of a table of learned positions."""
    if family in ("opt", "biogpt"):
        return positions + 2
    if family in ("gpt2", "gpt_bigcode") or learned:
        return positions
    return 0


def _experts(c: Mapping[str, Any], first: Any) -> Experts | None:
    count = first("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    if not count:
        return None
    named = c.get("model_type") not in _PLAIN_EXPERTS
    inner = first(*(("moe_intermediate_size",) if named else ()), "intermediate_size")
    shared = first("shared_expert_intermediate_size", default=first("n_shared_experts") * inner)
    used = first("num_experts_per_tok", "moe_k", "moe_topk", default=2)
    return Experts(count, used, inner, shared, shared_gate=c.get("model_type") == "qwen2_moe")
