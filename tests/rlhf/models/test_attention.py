"""Attention by batched products is torch's own attention, forward and backward, and is taken where it pays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.models import attention
from rlhf.models.loading import Loading, load_causal_lm
from rlhf.training import distributed
from tests.helpers.tiny import save_tiny, tiny_lm

ROWS, LENGTH, SIZE = 3, 11, 8


def inputs(heads: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value [B, heads, T, E], laid out as models make them."""
    generator = torch.Generator().manual_seed(heads)
    return [
        torch.randn((ROWS, LENGTH, n, SIZE), generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for n in (heads, key_heads, key_heads)
    ]


def packed_mask() -> Tensor:
    """Two sequences in a row, of another length in each row: [B, 1, T, T]."""
    index = torch.arange(LENGTH)
    before = index[:, None] >= index
    return torch.stack([before & ((index[:, None] < cut) == (index < cut)) for cut in (4, 7, LENGTH)])[:, None]


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("mask", [None, packed_mask()], ids=["causal", "packed"])
@pytest.mark.parametrize("added", [False, True], ids=["boolean", "added"])
def test_products_are_the_stock_attention(heads: int, key_heads: int, mask: Tensor | None, added: bool) -> None:
    given = mask
    if mask is not None and added:
        given = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    mine, theirs = inputs(heads, key_heads), inputs(heads, key_heads)
    found = attention.products(*mine, given, 0.3)  # type: ignore[misc]
    expected = F.scaled_dot_product_attention(
        *theirs, attn_mask=mask, is_causal=mask is None, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hardware", [True, False])
def test_products_are_taken_in_bf16_while_scores_are_few(hardware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are never taken on a CPU that does not multiply in bf16: there they took twice as long as torch's kernel."""
    monkeypatch.setattr(distributed, "computes_in_bf16", lambda: hardware)

    def suits(rows: int, length: int, dtype: torch.dtype = torch.bfloat16, keys: int | None = None) -> bool:
        query = torch.empty((rows, 8, length, 4), dtype=dtype)
        return attention.suits_products(query, query[:, :, : keys or length])

    assert suits(4, 256) == hardware
    assert not suits(4, 256, torch.float32)  # there the stock kernel is as fast, and keeps nothing
    assert not suits(1, attention.MOST_TOKENS + 1)
    assert not suits(64, 256)
    assert not suits(4, 256, keys=200)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_a_loaded_model_scores_and_trains_alike(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, against the stock attention: logits and gradients differ by rounding alone."""
    monkeypatch.setattr(distributed, "computes_in_bf16", lambda: True)  # or products would not be taken
    folder = save_tiny(tmp_path, family)
    model = load_causal_lm(Loading(str(folder), dtype=torch.bfloat16))
    config = model.config.get_text_config()
    assert config._attn_implementation == attention.NAME
    ids = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(0))
    found = []
    for name in (attention.NAME, "sdpa"):
        config._attn_implementation = name
        logits = model(input_ids=ids, use_cache=False).logits.float()
        model.zero_grad()
        logits.logsumexp(dim=-1).sum().backward()
        found.append((logits.detach(), torch.cat([p.grad.float().flatten() for p in model.parameters()])))  # type: ignore[union-attr]
    (mine, my_gradient), (theirs, their_gradient) = found
    torch.testing.assert_close(mine, theirs, atol=0.06, rtol=0)
    assert not torch.equal(mine, theirs), "another way must have been taken"
    assert float((my_gradient - their_gradient).norm() / their_gradient.norm()) < 0.02


def test_the_choice_is_not_saved_with_the_model(tmp_path: Path) -> None:
    model = load_causal_lm(Loading(str(save_tiny(tmp_path / "a"))))
    model.save_pretrained(tmp_path / "b")
    assert attention.NAME not in json.loads((tmp_path / "b/config.json").read_text()).values()


def test_windows_and_caps_are_left_to_their_own_model() -> None:
    model = tiny_lm("mistral")
    assert attention.is_served(model)
    model.config.sliding_window = 4
    assert not attention.is_served(model)
