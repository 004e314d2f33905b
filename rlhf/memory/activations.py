"""Bytes that a forward pass keeps for its backward pass, and those that heads and generation need for a moment.

They were counted by hooks on what autograd saves (`tests/rlhf/memory/test_activations.py` counts again). Attention is
torch's: it keeps queries, keys, values, output and one number a head, not the scores.
"""

from __future__ import annotations

from rlhf.memory.shapes import Shape

# Blocks of logits (rlhf/models/logprob_function.py): rows, and rows × columns, on GPUs and on CPUs.
BLOCK_ROWS, BLOCK_ENTRIES = 1024, 1 << 25
CPU_BLOCK_ROWS, CPU_BLOCK_ENTRIES = 512, 1 << 19
PREFILL_TOKENS = 8192  # of prompts that the sampler reads at once
# On CPUs that multiply in bf16, attention keeps its probabilities in sequences of at most this many tokens.
PRODUCT_TOKENS = 512


def norm_bytes(s: Shape, size: int, item: int) -> float:
    """Bytes of one norm over `size` values of one token. RMS norms are computed in fp32, and keep their input in it."""
    if s.norm in ("rms", "none"):
        return 4 * size + 2 * item * size + 4 if item < 4 else 3 * item * size + 4
    return 8 * size + item * size + 4 if s.norm == "gemma" else 2 * item * size + 2 * item


def layer_bytes(s: Shape, item: int, tokens: int, *, products: bool = False) -> float:
    """Bytes of one token in one layer, `item` being the bytes of a number, in sequences of `tokens` tokens."""
    total = s.norms * norm_bytes(s, s.hidden, item)
    query, key, value = s.query, s.key, s.key
    if s.latent:
        query = key = s.heads * (s.latent.plain + s.latent.rotated)
        value = s.heads * s.latent.value
    total += item * (query + key + value + (value if s.latent else query)) + 4 * s.heads
    if s.qk_norm:
        total += (4 + item if item < 4 else 2 * item) * (query + key) + 4 * (s.heads + s.kv_heads)
    if s.family == "gpt_neox":  # queries, keys and values stay together as well; two norms share their input
        total += item * (2 * s.hidden - s.hidden)
    if s.scores:  # attention that is written out: scores and probabilities
        total += s.heads * tokens * (4 + item)
    elif products:
        total += s.heads * tokens * item
    if s.experts:
        e = s.experts
        total += item * 4 * (e.used * e.inner + e.shared) + item * 2 * e.used * s.hidden
    else:
        total += item * (4 if s.gated else s.activation) * s.inner
    return total


def kept_bytes(s: Shape, item: int, rows: int, tokens: int, *, checkpointing: bool, products: bool = False) -> float:
    """Bytes that a backward pass over `rows` sequences of `tokens` tokens finds; with checkpointing the input of each
    layer, and one layer's own."""
    each = layer_bytes(s, item, tokens, products=products)
    outside = norm_bytes(s, s.hidden, item) + item * s.hidden
    layers = s.layers * item * s.hidden + each if checkpointing else s.layers * each
    return rows * tokens * (layers + outside)


def backward_bytes(s: Shape, item: int, rows: int, tokens: int) -> float:
    """Bytes of the gradients of one layer's activations while its backward pass runs."""
    return rows * tokens * item * (2 * s.hidden + 2 * s.inner)


def head_bytes(s: Shape, item: int, positions: int, *, trained: bool, gpu: bool) -> float:
    """Bytes of the log-probabilities of `positions` tokens, backward included: blocks of logits, the gradients of the
    hidden states and, if it is `trained`, of the output embedding."""
    rows, entries = (BLOCK_ROWS, BLOCK_ENTRIES) if gpu else (CPU_BLOCK_ROWS, CPU_BLOCK_ENTRIES)
    block = min(min(positions, rows) * s.vocabulary, entries)
    total = 3 * 4 * block + positions * s.embed * (4 + item)
    if trained:
        columns = min(s.vocabulary, entries // max(min(positions, rows), 1))
        total += s.vocabulary * s.embed * item + (2 * 4 * columns * s.embed if positions > rows else 0)
    return total


def cache_bytes(s: Shape, item: int, tokens: int) -> float:
    """Bytes of the keys and values of one sequence."""
    each = 2 * s.key
    if s.latent:
        each = s.heads * (s.latent.plain + s.latent.rotated + s.latent.value)
    return tokens * s.layers * each * item


def prefill_bytes(s: Shape, item: int, rows: int, prompt: int) -> float:
    """Bytes while prompts are read and tokens are drawn."""
    inner = s.experts.used * s.experts.inner if s.experts else s.inner
    read = min(PREFILL_TOKENS, rows * prompt)
    return read * item * (4 * inner + 6 * s.hidden) + rows * s.vocabulary * 16
