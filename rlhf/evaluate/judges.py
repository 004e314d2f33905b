"""Judges, which score the responses of an evaluation: a function of the user, or a reward model."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.errors import ConfigError, DataError
from rlhf.models.names import model_limit
from rlhf.template import Message


@dataclass(frozen=True)
class Asked:
    """A prompt of an evaluation: the messages, and the last of them as text."""

    row: int  # in the file, from 1
    messages: list[Message]

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Response:
    """A response of a model: its text, its length in tokens (with the end token), and whether an end token ended it."""

    text: str
    length: int
    ended: bool


Judge = Callable[[Sequence[Asked], Sequence[Response]], list[float]]


def scorer_problems(name: str) -> list[str]:
    """What is wrong with `package.module:function`, found without importing the module."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        return [f"scorer={name}: write it as package.module:function, a function of prompt and response"]
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    return [] if found else [f"scorer={name}: there is no module {module}"]


def scorer_judge(name: str) -> Judge:
    """The judge that asks `package.module:function` for a number for each (prompt, response)."""
    problems = scorer_problems(name)
    if problems:
        raise ConfigError(*problems)
    module, _, function = name.partition(":")
    score = getattr(importlib.import_module(module), function, None)
    if not callable(score):
        raise ConfigError(f"scorer={name}: {module} has no function {function}")

    def judge(asked: Sequence[Asked], responses: Sequence[Response]) -> list[float]:
        scores = []
        for prompt, response in zip(asked, responses, strict=True):
            value: Any = score(prompt.text, response.text)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise DataError(f"scorer={name} returned {value!r} for the prompt in row {prompt.row}, not a number")
            scores.append(float(value))
        return scores

    return judge


def reward_model_judge(name: str, *, dtype: str, batch_size: int, trust_remote_code: bool = False) -> Judge:
    """The judge that scores the conversation, in the reward model's own template, with a reward model.

    Scores are normalised as in stage 3. A sequence has an end token only if its response has one. Raises ModelError.
    """
    import torch

    from rlhf.models.loading import dtype_of, load_tokenizer
    from rlhf.models.scalar_model import ScalarModel, load_scalar_model, score_affine, values_at
    from rlhf.models.tensors import pad_right
    from rlhf.template import Template
    from rlhf.training.distributed import device

    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    template = Template(tokenizer)
    model = load_scalar_model(
        name, tokenizer=tokenizer, dtype=dtype_of(dtype), no_dropout=True, trust_remote_code=trust_remote_code
    )
    mean, std = score_affine(model.config)
    limit = model_limit(model.config.to_dict()) or 2**31
    scorer = ScalarModel(model).eval().to(device())
    pad = int(tokenizer.pad_token_id)  # type: ignore[arg-type]

    @torch.no_grad()
    def judge(asked: Sequence[Asked], responses: Sequence[Response]) -> list[float]:
        scores = []
        for begin in range(0, len(asked), batch_size):
            sequences = [
                (template.prompt_ids(a.messages) + template.response_ids(r.text, end=r.ended))[-limit:]
                for a, r in zip(asked[begin : begin + batch_size], responses[begin : begin + batch_size], strict=True)
            ]
            last_B = torch.tensor([len(ids) - 1 for ids in sequences])
            values_B = values_at(scorer(pad_right(sequences, pad).to(device())), last_B.to(device()))
            scores += ((values_B - mean) / std).tolist()
        return scores

    return judge
