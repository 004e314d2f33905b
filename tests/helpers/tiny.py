"""Tiny models of every family and a tiny tokenizer, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers import decoders as token_decoders

from tests.helpers.families import config_of

VOCABULARY = 320
_SMALL: dict[str, Any] = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0)

FAMILIES: dict[str, Any] = {
    "opt": lambda: hf.OPTConfig(
        **{**_SMALL, "bos_token_id": 2}, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32,
    ),
    "opt_projected": lambda: hf.OPTConfig(  # as opt-350m: embeddings narrower than the hidden size, norm after
        **{**_SMALL, "bos_token_id": 2}, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=16, do_layer_norm_before=False,
    ),
    "llama": lambda: hf.LlamaConfig(
        **_SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    ),
    "qwen2": lambda: hf.Qwen2Config(
        **_SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    ),
    "mistral": lambda: hf.MistralConfig(
        **_SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=None,
    ),
    "qwen3": lambda: hf.Qwen3Config(
        **_SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
    ),
    "gemma": lambda: hf.GemmaConfig(
        **_SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
    ),
    "gpt2": lambda: hf.GPT2Config(**_SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gpt_neox": lambda: hf.GPTNeoXConfig(
        **_SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    ),
    "bloom": lambda: hf.BloomConfig(**_SMALL, hidden_size=32, n_layer=2, n_head=4),
}  # fmt: skip


def tiny_lm(family: str = "llama", seed: int = 0) -> hf.PreTrainedModel:
    """A random causal model of one of these families, or of those of `families.py`."""
    return random_lm(FAMILIES[family]() if family in FAMILIES else config_of(family), seed)


def random_lm(config: hf.PreTrainedConfig, seed: int = 0) -> hf.PreTrainedModel:
    """A random causal model, biases and norms moved off their zeros and ones so that mistakes show."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # saved with the weights: it decides on the experts
                buffer.add_(torch.randn(buffer.shape, generator=generator))
    return model.eval()


def tiny_tokenizer(pad: str | None = "<pad>") -> hf.PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every text is its bytes; pad, bos and eos are ids 0, 1, 2.

    With `pad` None or "</s>" it has no token of its own for padding, and bos and eos are ids 0 and 1.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"] if pad == "<pad>" else ["<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = token_decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # type: ignore[assignment]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def sentencepiece_tokenizer(kind: str = "first") -> hf.PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece's: a space is part of the word behind it, bytes stand for what has no token, and a
    text gets a space at its beginning: at the "first" part of it, "always", by a normalizer ("legacy", as Llama 2), or
    with a "unigram" model, which may make `<s>` of plain text."""
    words, letters = ["▁So", "▁it", "▁is", "▁Why", "So"], [chr(i) for i in range(33, 127)]
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{i:02X}>" for i in range(256)), "▁", *letters]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    bpe: Any = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, unk_token="<unk>", byte_fallback=True
    )
    scores = [(piece, 0.0 if piece in special else -1.0 if piece in words else -9.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True) if kind == "unigram" else bpe)
    if kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    else:
        scheme: Any = "always" if kind == "unigram" else kind
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)  # type: ignore[assignment]
    tokenizer.decoder = token_decoders.Sequence(  # type: ignore[assignment]
        [
            token_decoders.Replace("▁", " "),
            token_decoders.ByteFallback(),
            token_decoders.Fuse(),
            token_decoders.Strip(" ", 1, 0),
        ]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def save_tiny(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """A tiny model and tokenizer as a Hugging Face folder."""
    tiny_lm(family, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
