"""Passes over the parts of a batch side by side: the gradients of one pass over the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from scripts.side_by_side import MOST_PARTS, SideBySide
from tests.helpers.tiny import tiny_lm

PAD = 0


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 5])
def test_gradients_are_those_of_the_whole_batch(count: int, rows: int) -> None:
    """A mean of the parts' means would weigh a token of a padded part more; a row could be left out."""
    model = tiny_lm("llama")
    ids_BT = torch.randint(1, model.config.vocab_size, (rows, 7), generator=torch.Generator().manual_seed(0))
    ids_BT[0, 3:] = PAD
    logits_BTV = model(input_ids=ids_BT[:, :-1]).logits
    expected = cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), ignore_index=PAD)
    expected.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()

    parts = SideBySide(model, count)
    for _ in range(2):  # the second pass starts from gradients of 0, also in the copies
        loss = parts.backward(ids_BT, ignore=PAD)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-5, atol=1e-7)
        model.zero_grad()


def test_a_step_of_the_model_is_seen_by_every_part() -> None:
    """With weights of their own the parts would train on the model of the first step."""
    model = tiny_lm("llama")
    ids_BT = torch.randint(1, model.config.vocab_size, (4, 7))
    parts = SideBySide(model, 2)
    before = parts.backward(ids_BT, ignore=PAD)
    parts.all([torch.optim.SGD(model.parameters(), lr=0.5).step])
    model.zero_grad()
    after = parts.backward(ids_BT, ignore=PAD)
    whole = cross_entropy(model(input_ids=ids_BT[:, :-1]).logits.flatten(0, 1), ids_BT[:, 1:].flatten())
    assert after != pytest.approx(before, rel=1e-3)
    assert after == pytest.approx(float(whole.detach()), rel=1e-5)


def test_many_threads_are_shared_among_the_parts() -> None:
    """On a machine of 64 cores 64 parts would wait for each other in Python."""
    parts = SideBySide(tiny_lm("llama"), 3 * MOST_PARTS)
    assert len(parts.models) == MOST_PARTS
    assert list(parts.threads.map(lambda _: torch.get_num_threads(), range(MOST_PARTS))) == [3] * MOST_PARTS
