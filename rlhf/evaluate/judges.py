"""Judges, which score the responses of an evaluation: a function of the user, or a reward model."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rlhf.errors import ConfigError, DataError
from rlhf.template import Message, Template

SCORE = "score"  # the whole, in what a scorer with parts returns


@dataclass(frozen=True)
class Asked:
    """A prompt of an evaluation: the messages, and the last of them as text. `is_text`: the file has it as text.
    `columns` are what else the file has in its row."""

    row: int  # in the file, from 1
    messages: list[Message]
    is_text: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

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


@dataclass(frozen=True)
class Scores:
    """One score for each response, and the parts that a scorer may name: part → one value for each response, None where
    there is none."""

    values: list[float]
    parts: dict[str, list[float | None]] = field(default_factory=dict)


Judge = Callable[[Sequence[Asked], Sequence[Response]], Scores]


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
    """The judge that asks `package.module:function` about each (prompt, response).

    The function returns a number, or a mapping of numbers: `score`, and the parts that the tables show beside it.
    """
    problems = scorer_problems(name)
    if problems:
        raise ConfigError(*problems)
    module, _, function = name.partition(":")
    score = getattr(importlib.import_module(module), function, None)
    if not callable(score):
        raise ConfigError(f"scorer={name}: {module} has no function {function}")

    def judge(asked: Sequence[Asked], responses: Sequence[Response]) -> Scores:
        rows = []
        for prompt, response in zip(asked, responses, strict=True):
            value: Any = score(prompt.text, response.text)
            try:
                rows.append(_figures(value))
                if rows[-1].keys() != rows[0].keys():
                    raise ValueError(f"not the same parts as before ({', '.join(rows[0])})")
            except ValueError as error:
                raise DataError(
                    f"scorer={name} returned {value!r} for the prompt in row {prompt.row}, {error}"
                ) from None
        names = rows[0] if rows else {SCORE: 0.0}
        columns: dict[str, Any] = {part: [row[part] for row in rows] for part in names}
        return Scores(columns.pop(SCORE), columns)

    return judge


def _figures(value: Any) -> dict[str, float]:
    """What a scorer returned, as `score` and its parts. Raises ValueError with what is wrong."""
    if not isinstance(value, Mapping):
        return {SCORE: _number(value)}
    if SCORE not in value:
        raise ValueError(f"without '{SCORE}'")
    if strange := [part for part in value if not isinstance(part, str) or not part.strip()]:
        raise ValueError(f"with the part {strange[0]!r}, which is not a name")
    return {part: _number(number, f"with {number!r} for '{part}', ") for part, number in value.items()}


def _number(value: Any, where: str = "") -> float:
    """`value` as a float, numbers of NumPy and torch too. Raises ValueError."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}not a number")
    return number


def reward_model_judge(
    name: str, *, dtype: str, batch_size: int, trust_remote_code: bool = False, is_any: bool = False
) -> Judge:
    """The judge that scores the conversation, in the reward model's own template, with a reward model.

    Scores are those of stage 3: normalised (raw for a model that stage 2 did not train), of the ids that were drawn if
    they are the reward model's tokens, with an end token only if the response has one. `is_any`: the model may be any
    sequence classifier with one output that brings a chat template. Raises ModelError.
    """
    from rlhf.models.loading import Loading, dtype_of, load_tokenizer
    from rlhf.models.reward_model import load_reward_model, same_tokens

    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, own_template=is_any)
    reward_model = load_reward_model(
        Loading(name, tokenizer, dtype_of(dtype), no_dropout=True, trust_remote_code=trust_remote_code), is_any=is_any
    )

    @cache
    def reads(template: Template) -> bool:
        return same_tokens(template, reward_model.template)

    def judge(asked: Sequence[Asked], responses: Sequence[Response]) -> Scores:
        sequences = []
        for a, r in zip(asked, responses, strict=True):
            drawn = r.ids if r.template is not None and reads(r.template) else None
            sequences.append(reward_model.sequence(a.messages, r.text if drawn is None else drawn, ended=r.ended))
        scores: list[float] = []
        for begin in range(0, len(sequences), batch_size):
            scores_B = reward_model.scores(sequences[begin : begin + batch_size])
            scores += reward_model.normalise(scores_B).tolist()
        return Scores(scores)

    return judge
