"""Judges, which score the responses of an evaluation: a function of the user, or a reward model."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rlhf.errors import ConfigError, DataError
from rlhf.template import Message, Template


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
    """A response of a model: its text, its length in tokens (with the end token), and whether an end token ended it.

    `ids` are those of the text, as they were drawn, in the tokens of `template`; None if they are not known.
    """

    text: str
    length: int
    ended: bool
    ids: Sequence[int] | None = field(default=None, compare=False, repr=False)
    template: Template | None = field(default=None, compare=False, repr=False)


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

    Scores are those of stage 3: normalised (raw for a model that stage 2 did not train), of the ids that were drawn if
    they are the reward model's tokens, with an end token only if the response has one. Raises ModelError.
    """
    from rlhf.models.loading import Loading, dtype_of, load_tokenizer
    from rlhf.models.reward_model import load_reward_model, same_tokens

    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    reward_model = load_reward_model(
        Loading(name, tokenizer, dtype_of(dtype), no_dropout=True, trust_remote_code=trust_remote_code)
    )

    @cache
    def reads(template: Template) -> bool:
        return same_tokens(template, reward_model.template)

    def judge(asked: Sequence[Asked], responses: Sequence[Response]) -> list[float]:
        sequences = []
        for a, r in zip(asked, responses, strict=True):
            drawn = r.ids if r.template is not None and reads(r.template) else None
            sequences.append(reward_model.sequence(a.messages, r.text if drawn is None else drawn, ended=r.ended))
        scores: list[float] = []
        for begin in range(0, len(sequences), batch_size):
            scores_B = reward_model.scores(sequences[begin : begin + batch_size])
            scores += reward_model.normalise(scores_B).tolist()
        return scores

    return judge
