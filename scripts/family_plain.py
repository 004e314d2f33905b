"""What plain transformers says of a tiny model, and the comparisons with it: the ground of `scripts.family_checks`."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from scripts.family_configs import VOCABULARY

NEAR = 1e-5  # losses and log-probabilities, in nats
EXACT = 2e-6  # logits and scores, relative to the largest one where that is above 1
ROUNDINGS = 4  # of plain transformers itself, where a model's float32 is coarser than that
PAD, NEW = 0, 12  # the pad token, and the tokens of a response
PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22], [250, 3], [8, 8, 8, 90, 41]]
PROBE = [[5, 9, 2, 44, 101, 7, 61, 18, 19, 33, 250, 4, 90], [200, 3, 3, 17, 60, 81, 6, 8, 9, 100, 12, 54, 55]]


class Wrong(Exception):
    """A figure is not what it should be; the text says which, and by how much it is off."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines of stages and libraries."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plain_lm(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def plain_logits(model: Any) -> Tensor:
    return model(input_ids=torch.tensor(PROBE), use_cache=False).logits


@torch.no_grad()
def plain_logprobs(model: Any, ids: Tensor) -> Tensor:
    """Log-probability of each token but the first, given those before it."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(dim=-1).gather(1, ids[1:, None])[:, 0]


def plain_loss(model: Any, rows: Any) -> float:
    """Mean cross-entropy over the tokens of the responses, row by row."""
    parts = [plain_logprobs(model, torch.tensor(row["input_ids"]))[row["prompt_length"] - 1 :] for row in rows]
    return -float(torch.cat(parts).double().mean())


def response_logprobs(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Log-probability of each token of a response, by a whole forward of the row alone."""
    return plain_logprobs(model, torch.tensor([*prompt, *response]))[len(prompt) - 1 :]


@torch.no_grad()
def plain_scores(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 0] for ids in sequences])


@torch.no_grad()
def plain_greedy(model: Any, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=PAD,
        eos_token_id=VOCABULARY + 1,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def near(what: str, ours: float, theirs: float) -> None:
    if not abs(ours - theirs) <= NEAR:
        raise Wrong(f"{what} is {ours:.6g} instead of {theirs:.6g}")


def close(what: str, ours: Tensor, theirs: Tensor) -> None:
    off = float((ours - theirs).abs().max())
    if not off <= NEAR:
        raise Wrong(f"{what} are off by {off:.1e} nats")


def exact(
    what: str, ours: Tensor, theirs: Tensor, plain: Any, compute: Callable[[Any], Tensor], tolerance: float = EXACT
) -> None:
    """`compute(plain)` gives `theirs` in plain transformers, up to rounding; it tells how coarse that is."""
    off, largest = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
    if not off <= tolerance * largest and not off <= ROUNDINGS * rounding(plain, compute):
        raise Wrong(f"{what}: off by {off:.1e}")


def rounding(plain: Any, compute: Callable[[Any], Tensor]) -> float:
    """How far a result of plain transformers in float32 is from that of the same weights in double precision."""
    return float((compute(plain).double() - compute(copy.deepcopy(plain).double()).double()).abs().max())
