"""Log-probabilities of counted tokens are those of transformers' own logits, for every family and any padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn, tensor

from rlhf.models.causal_model import CausalModel, LogprobHead, install_logprob_head
from tests.helpers.tiny import FAMILIES, tiny_lm

IDS = tensor([[5, 9, 2, 44, 101, 7], [200, 3, 17, 0, 0, 0]])  # the second row has three tokens and padding
COUNT = tensor([[False, False, True, True, False, True], [False, True, True, False, False, False]])


def _from_logits(lm: Any, temperature: float = 1.0) -> torch.Tensor:
    """Row by row without padding, from the whole table."""
    parts = []
    for ids, count, length in zip(IDS, COUNT, (6, 3), strict=True):
        table = (lm(input_ids=ids[None, :length]).logits[0].float() / temperature).log_softmax(-1)
        parts += [table[t - 1, ids[t]] for t in range(1, length) if count[t]]
    return torch.stack(parts)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_scores_as_its_logits(family: str) -> None:
    """Also the gradient: weights of the output embedding included, tied to the input or not."""
    wanted_model: Any = tiny_lm(family)
    wanted = _from_logits(wanted_model, temperature=0.8)
    wanted.sum().backward()
    model = CausalModel(tiny_lm(family))
    scores = model(IDS, COUNT, temperature=0.8)
    torch.testing.assert_close(scores.logprobs_N, wanted, rtol=1e-5, atol=1e-5)
    scores.logprobs_N.sum().backward()
    for (name, found), (_, expected) in zip(model.lm.named_parameters(), wanted_model.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_head_still_gives_logits(family: str) -> None:
    lm: Any = tiny_lm(family)
    with torch.no_grad():
        before = lm(input_ids=IDS).logits
        CausalModel(lm)
        torch.testing.assert_close(lm(input_ids=IDS).logits, before)


def test_soft_cap_and_scale_are_the_families_own() -> None:
    """Gemma 2 caps its logits, Granite divides and Cohere multiplies them."""
    small: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }  # fmt: skip
    for config in (
        hf.Gemma2Config(**small, head_dim=8, final_logit_softcapping=0.5),
        hf.GraniteConfig(**small, logits_scaling=3.0),
        hf.CohereConfig(**small, logit_scale=0.25),
    ):
        torch.manual_seed(0)
        lm: Any = hf.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            wanted = _from_logits(lm)
            torch.testing.assert_close(CausalModel(lm)(IDS, COUNT).logprobs_N, wanted, rtol=1e-5, atol=1e-5)


def test_what_does_not_count_does_not_matter() -> None:
    """Other tokens in the padding, other rows in the batch: the same scores."""
    model = CausalModel(tiny_lm())
    with torch.no_grad():
        scores = model(IDS, COUNT).logprobs_N
        other = IDS.clone()
        other[1, 3:] = tensor([250, 1, 99])
        torch.testing.assert_close(model(other, COUNT).logprobs_N, scores)
        torch.testing.assert_close(model(IDS[1:, :3], COUNT[1:, :3]).logprobs_N, scores[3:])


def test_nothing_counted_still_has_a_backward_through_every_weight() -> None:
    """Under ZeRO-3 a rank without rows must gather and reduce what the others do."""
    model = CausalModel(tiny_lm())
    scores = model(IDS, torch.zeros_like(COUNT))
    assert scores.logprobs_N.shape == (0,)
    scores.logprobs_N.sum().backward()
    for name, parameter in model.lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() == 0


def test_minimum_length_masks_the_end_token() -> None:
    """Below the minimum the end token has probability 0 and the rest share its mass."""
    model, lm = CausalModel(tiny_lm()), tiny_lm()
    forbidden = torch.zeros_like(COUNT)
    forbidden[0, 3] = True
    with torch.no_grad():
        plain, masked = (
            model(IDS, COUNT),
            model(IDS, COUNT, forbidden_BT=forbidden, forbidden_ids=(2,), with_entropy=True),
        )
        logits: Any = lm(input_ids=IDS[:1]).logits[0, 2]  # what predicts position 3
    difference = masked.logprobs_N - plain.logprobs_N
    assert difference.nonzero()[:, 0].tolist() == [1]  # the second counted token of the first row
    logits[2] = float("-inf")
    assert masked.logprobs_N[1].item() == pytest.approx(float(logits.log_softmax(-1)[IDS[0, 3]]), abs=1e-5)
    p = logits.softmax(-1)
    assert masked.entropy_N[1].item() == pytest.approx(float(-(p[p > 0] * p[p > 0].log()).sum()), abs=1e-4)


def test_only_a_linear_output_is_accepted() -> None:
    class Strange(nn.Linear):
        pass

    class Model:
        head: nn.Module = Strange(2, 3)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    with pytest.raises(AssertionError, match="Strange, not a plain linear layer"):
        install_logprob_head(Model())


def test_the_head_is_installed_once() -> None:
    lm: Any = tiny_lm()
    CausalModel(lm)
    head = lm.get_output_embeddings()
    CausalModel(lm)
    assert lm.get_output_embeddings() is head
    assert isinstance(head, LogprobHead)
