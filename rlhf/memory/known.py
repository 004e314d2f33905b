"""The config.json of every alias, as far as a plan needs it: facts of published models, for machines without a network.

Where a model's own config.json can be read, that one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.models.names import ALIASES, resolve


def _opt(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": hidden,
        "tie_word_embeddings": True,
    } | more


def _pythia(hidden: int, layers: int, heads: int, vocabulary: int = 50304) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def _bloom(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bloom",
        "hidden_size": hidden,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": 250880,
        "tie_word_embeddings": True,
    }


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "vocab_size": 50257,
        "tie_word_embeddings": True,
    }


def _gated(
    family: str, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int, positions: int,
    *, tied: bool, head_dim: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": family,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden // heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }


# fmt: off
_SHAPES: dict[str, dict[str, Any]] = {
    "opt-125m": _opt(768, 12, 12),
    "opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "opt-30b": _opt(7168, 48, 56),
    "opt-66b": _opt(9216, 64, 72),
    "pythia-70m": _pythia(512, 6, 8),
    "pythia-160m": _pythia(768, 12, 12),
    "pythia-410m": _pythia(1024, 24, 16),
    "pythia-1b": _pythia(2048, 16, 8),
    "pythia-2.8b": _pythia(2560, 32, 32),
    "pythia-6.9b": _pythia(4096, 32, 32, 50432),
    "pythia-12b": _pythia(5120, 36, 40, 50688),
    "bloom-560m": _bloom(1024, 24, 16),
    "bloom-1b1": _bloom(1536, 24, 16),
    "bloom-1b7": _bloom(2048, 24, 16),
    "bloom-3b": _bloom(2560, 30, 32),
    "bloom-7b1": _bloom(4096, 30, 32),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "qwen2.5-0.5b": _gated("qwen2", 896, 24, 14, 2, 4864, 151936, 32768, tied=True),
    "qwen2.5-1.5b": _gated("qwen2", 1536, 28, 12, 2, 8960, 151936, 131072, tied=True),
    "qwen2.5-3b": _gated("qwen2", 2048, 36, 16, 2, 11008, 151936, 32768, tied=True),
    "qwen2.5-7b": _gated("qwen2", 3584, 28, 28, 4, 18944, 152064, 131072, tied=False),
    "qwen2.5-14b": _gated("qwen2", 5120, 48, 40, 8, 13824, 152064, 131072, tied=False),
    "qwen2.5-32b": _gated("qwen2", 5120, 64, 40, 8, 27648, 152064, 131072, tied=False),
    "qwen2.5-72b": _gated("qwen2", 8192, 80, 64, 8, 29568, 152064, 131072, tied=False),
    "qwen3-0.6b": _gated("qwen3", 1024, 28, 16, 8, 3072, 151936, 32768, tied=True, head_dim=128),
    "qwen3-1.7b": _gated("qwen3", 2048, 28, 16, 8, 6144, 151936, 32768, tied=True, head_dim=128),
    "qwen3-4b": _gated("qwen3", 2560, 36, 32, 8, 9728, 151936, 32768, tied=True, head_dim=128),
    "qwen3-8b": _gated("qwen3", 4096, 36, 32, 8, 12288, 151936, 32768, tied=False, head_dim=128),
    "qwen3-14b": _gated("qwen3", 5120, 40, 40, 8, 17408, 151936, 32768, tied=False, head_dim=128),
    "llama-3.2-1b": _gated("llama", 2048, 16, 32, 8, 8192, 128256, 131072, tied=True),
    "llama-3.2-3b": _gated("llama", 3072, 28, 24, 8, 8192, 128256, 131072, tied=True),
    "llama-3.1-8b": _gated("llama", 4096, 32, 32, 8, 14336, 128256, 131072, tied=False),
    "llama-3.1-70b": _gated("llama", 8192, 80, 64, 8, 28672, 128256, 131072, tied=False),
    "mistral-7b": _gated("mistral", 4096, 32, 32, 8, 14336, 32768, 32768, tied=False),
    "gemma-2b": _gated("gemma", 2048, 18, 8, 1, 16384, 256000, 8192, tied=True, head_dim=256),
    "gemma-7b": _gated("gemma", 3072, 28, 16, 16, 24576, 256000, 8192, tied=True, head_dim=256),
    "smollm2-135m": _gated("llama", 576, 30, 9, 3, 1536, 49152, 8192, tied=True),
    "smollm2-360m": _gated("llama", 960, 32, 15, 5, 2560, 49152, 8192, tied=True),
}
# fmt: on

_BY_HUB_NAME = {ALIASES[alias]: config for alias, config in _SHAPES.items()}


def known_config(name: str) -> Mapping[str, Any] | None:
    """The config.json of an alias or of the hub name behind one; None for every other model."""
    return _BY_HUB_NAME.get(resolve(name))
