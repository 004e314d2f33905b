"""Models with random weights and a tokenizer of bytes, and preference pairs, for what is tried on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def opt(hidden: int, layers: int, heads: int, vocabulary: int) -> Any:
    import transformers as hf

    return hf.OPTConfig(
        vocab_size=vocabulary, hidden_size=hidden, ffn_dim=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=2048, word_embed_proj_dim=hidden, bos_token_id=2,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def llama(
    hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int, kind: str = "Llama"
) -> Any:
    import transformers as hf

    return getattr(hf, f"{kind}Config")(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=4096, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def small(family: str) -> Any:
    import transformers as hf

    if family == "gpt2":
        return hf.GPT2Config(
            vocab_size=320, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
        )
    if family == "opt":
        return opt(64, 2, 4, 320)
    return llama(64, 128, 2, 4, 2, 320, kind={"llama": "Llama", "qwen2": "Qwen2"}[family])


def random_model(config: Any, *, scalar: bool = False) -> Any:
    """On the GPU if there is one, in bf16: a model of 8B is drawn in a second there."""
    import torch
    import transformers as hf

    auto = hf.AutoModelForSequenceClassification if scalar else hf.AutoModelForCausalLM
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = auto.from_config(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def write_model(folder: Path, config: Any, *, scalar: bool = False) -> str:
    from scripts.bench_common import byte_tokenizer

    if scalar:
        config.num_labels, config.score_mean, config.score_std = 1, 0.0, 1.0
    random_model(config, scalar=scalar).cpu().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def write_pairs(folder: Path) -> str:
    rows = [
        {"prompt": f"What is {i}+{i % 7}?", "chosen": f"It is {i + i % 7}.", "rejected": f"{i} no!"} for i in range(96)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
