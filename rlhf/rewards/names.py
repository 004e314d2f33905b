"""`--reward` as text: which function, model or check is meant, and with what weight. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rlhf.errors import nearest
from rlhf.rewards.checks import CHECKS, option_problems

Kind = Literal["function", "model", "check", "reward_model"]
TRAINED = "reward_model"  # the model that stage 2 trains, or that the setting of this name gives
WAYS = "FILE.py:FUNCTION, model:FOLDER_OR_HUB_NAME, check:NAME or reward_model, each with :WEIGHT if it is not 1"
_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<function>[^:]*)(?::(?P<weight>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Reward:
    """One `--reward`. `target` is a Python file, a model's folder or hub name, or the name of a check.

    `name` stands in metrics, files and tables; it is unique among the rewards of a run.
    """

    spec: str
    kind: Kind
    target: str = ""
    function: str = ""
    options: tuple[tuple[str, str], ...] = ()
    weight: float = 1.0
    name: str = ""

    @property
    def is_called(self) -> bool:
        """Whether it is a Python function, of the user or of the project, rather than a model."""
        return self.kind in ("function", "check")

    @property
    def flag(self) -> str:
        """How messages begin."""
        return f"--reward {self.spec}"


def parse(specs: Sequence[str]) -> tuple[list[Reward], list[str]]:
    """The rewards that can be understood, and a line for each problem."""
    found: list[Reward] = []
    problems: list[str] = []
    for spec in specs:
        try:
            reward = _one(spec.strip())
        except ValueError as error:
            problems.append(f"--reward {spec}: {error}")
            continue
        if any(_same(reward, other) for other in found):
            problems.append(f"--reward {spec} is given twice; give it once, with the sum of the weights")
            continue
        if wrong := _option_problems(reward):
            problems += [f"--reward {spec}: {line}" for line in wrong]
            continue
        taken = {other.name for other in found}
        number = next(n for n in range(1, len(specs) + 1) if _numbered(reward.name, n) not in taken)
        found.append(replace(reward, name=_numbered(reward.name, number)))
    if found and not problems and not any(reward.weight for reward in found):
        problems.append("--reward: all weights are 0, so there is nothing to learn; give one of them a weight")
    return found, problems


def _one(spec: str) -> Reward:
    """Raises ValueError with what is wrong."""
    kind, colon, rest = spec.partition(":")
    if kind == TRAINED:
        return Reward(spec, TRAINED, weight=_weight(rest) if colon else 1.0, name=TRAINED)
    if kind == "model" and colon:
        return _model(spec, rest)
    if kind == "check" and colon:
        return _check(spec, rest)
    found = _FUNCTION.fullmatch(spec)
    if found is None:
        hint = f"; did you mean 'check:{spec}'?" if kind in CHECKS else nearest(kind, ["model", "check", TRAINED])
        raise ValueError(f"write it as {WAYS}{hint}")
    function, weight = found["function"], found["weight"]
    if not function.isidentifier():
        raise ValueError(f"'{function}' is not the name of a function; write FILE.py:FUNCTION")
    weight = 1.0 if weight is None else _weight(weight)
    return Reward(spec, "function", found["file"], function, weight=weight, name=_plain(function))


def _model(spec: str, rest: str) -> Reward:
    name, colon, number = rest.rpartition(":")
    if not colon or Path(rest).is_dir():
        name, number = rest, "1"
    if not name:
        raise ValueError("name a folder or a model of the hub, as in model:org/name")
    return Reward(spec, "model", name, weight=_weight(number), name=_plain(name.rstrip("/").rpartition("/")[2]))


def _check(spec: str, rest: str) -> Reward:
    name, colon, number = rest.rpartition(":")
    if not colon or ("=" in name and not _is_number(number)):  # a colon of an option's value
        name, number = rest, "1"
    check, _, options = name.partition(",")
    if check not in CHECKS:
        raise ValueError(f"there is no check '{check}', only {', '.join(CHECKS)}{nearest(check, CHECKS)}")
    return Reward(spec, "check", check, options=_options(check, options), weight=_weight(number), name=check)


def _options(check: str, text: str) -> tuple[tuple[str, str], ...]:
    """`"min=20,max=100"` as pairs. A comma only ends a value where NAME= follows, so that patterns may have some."""
    if not text:
        return ()
    pairs = []
    for part in re.split(r",(?=\w+=)", text):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"write its options as check:{check},NAME=VALUE, not '{part}'")
        if name in dict(pairs):
            raise ValueError(f"the option {name} is given twice")
        pairs.append((name, value))
    return tuple(pairs)


def _option_problems(reward: Reward) -> list[str]:
    return option_problems(reward.target, dict(reward.options)) if reward.kind == "check" else []


def _weight(text: str) -> float:
    if not _is_number(text):
        raise ValueError(f"the weight '{text}' is not a number")
    weight = float(text)
    if not 0 <= weight < math.inf:
        raise ValueError(f"the weight {text} must be 0 or more; a function may return negative scores instead")
    return weight


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(name: str) -> str:
    """A name that can stand in the name of a metric."""
    return re.sub(r"[^\w.-]+", "_", name) or "reward"


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _same(left: Reward, right: Reward) -> bool:
    return (left.kind, left.target, left.function, left.options) == (
        right.kind, right.target, right.function, right.options,
    )  # fmt: skip
