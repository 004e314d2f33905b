"""Ready-made rewards: `check:NAME`, functions of TRL's signature that a table makes from options. Imports no torch.

Each is a function of its options that returns the reward: `exact(column="solution")(completions=…, solution=…)`.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from rlhf.errors import nearest
from rlhf.rewards.code_check import code_share

Score = float | None
RewardFunction = Callable[..., list[Score]]


def exact(*, column: str = "answer") -> RewardFunction:
    """1 if the answer is that of the column, else 0. The answer is the last \\boxed{…}, else what follows the last
    "####", else the whole response; numbers are compared by value. A column may hold several right answers."""

    def check(completions: Sequence[Any], **columns: Sequence[Any]) -> list[Score]:
        return [_share(right, text_of(c), _is_same) for c, right in zip(completions, columns[column], strict=True)]

    return check


def math_verified(*, column: str = "answer") -> RewardFunction:
    """1 if math-verify finds the answer equal to that of the column, else 0; the column may be LaTeX."""

    def is_same(right: str, said: str) -> bool:
        from math_verify import parse, verify  # type: ignore[import-not-found]

        gold = parse(right) or parse(f"${right}$")
        return bool(verify(gold, parse(said)))

    def check(completions: Sequence[Any], **columns: Sequence[Any]) -> list[Score]:
        return [_share(right, text_of(c), is_same) for c, right in zip(completions, columns[column], strict=True)]

    return check


def regex(*, pattern: str) -> RewardFunction:
    """1 if the pattern is found in the response, else 0."""
    compiled = re.compile(pattern)
    return lambda completions, **_: [float(compiled.search(text_of(c)) is not None) for c in completions]


def thinking(*, tag: str = "think") -> RewardFunction:
    """1 if the response is one block <think>…</think> and then an answer, else 0."""
    shape = re.compile(rf"\s*<{tag}>(?P<thoughts>.*)</{tag}>(?P<answer>.*)", re.DOTALL)

    def is_good(text: str) -> bool:
        found = shape.fullmatch(text)
        once = text.count(f"<{tag}>") == text.count(f"</{tag}>") == 1
        return bool(found and once and found["thoughts"].strip() and found["answer"].strip())

    return lambda completions, **_: [float(is_good(text_of(c))) for c in completions]


def length(*, min: int = 0, max: int = 0, unit: str = "tokens") -> RewardFunction:
    """1 from `min` to `max` tokens (or words, or characters); outside it falls: n / min below, max / n above."""

    def check(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[Score]:
        texts = [text_of(c) for c in completions]
        counts = {
            "tokens": lambda: [len(ids) for ids in completion_ids],
            "words": lambda: [len(text.split()) for text in texts],
            "characters": lambda: [len(text) for text in texts],
        }[unit]()
        return [n / min if n < min else max / n if max and n > max else 1.0 for n in counts]

    return check


def repetition(*, words: int = 3) -> RewardFunction:
    """Minus the share of the response's word groups (of `words` words) that stood in it before: −1 to 0."""

    def penalty(text: str) -> float:
        said = text.lower().split()
        groups = [tuple(said[i : i + words]) for i in range(len(said) - words + 1)]
        return len(set(groups)) / len(groups) - 1 if groups else 0.0

    return lambda completions, **_: [penalty(text_of(c)) for c in completions]


def code(*, column: str = "tests", seconds: float = 10.0, megabytes: int = 512) -> RewardFunction:
    """The share of the tests in the column (Python statements, as one text or a list of them) that run after the
    response's code: its last fenced block, else all of it. Without tests in a row: whether the code runs."""

    def check(completions: Sequence[Any], **columns: Sequence[Any]) -> list[Score]:
        texts = [text_of(c) for c in completions]
        return code_share(texts, columns.get(column), seconds=seconds, megabytes=megabytes)

    return check


CHECKS: Mapping[str, Callable[..., RewardFunction]] = {
    "exact": exact,
    "math": math_verified,
    "regex": regex,
    "format": thinking,
    "length": length,
    "repetition": repetition,
    "code": code,
}
_CHOICES = {"unit": ("tokens", "words", "characters")}
_READS = ("exact", "math")  # need the column that they name


def check_columns(name: str, options: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The columns that a check needs, and those that it also reads."""
    column = options.get("column") or getattr(inspect.signature(CHECKS[name]).parameters.get("column"), "default", "")
    if not column:
        return [], []
    return ([column], []) if name in _READS else ([], [column])


def make_check(name: str, options: Mapping[str, str]) -> RewardFunction:
    """The function of a check whose options have no problems."""
    return CHECKS[name](**_values(name, options))


def option_problems(name: str, options: Mapping[str, str]) -> list[str]:
    """What is wrong with the options of a check, each in one line."""
    known = inspect.signature(CHECKS[name]).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        listed = ", ".join(known)
        return [f"it has no option '{unknown[0]}', only {listed}{nearest(unknown[0], known)}"]
    missing = [o for o, p in known.items() if p.default is inspect.Parameter.empty and not options.get(o)]
    if missing:
        return [f"it needs {missing[0]}=…, as in check:{name},{missing[0]}=VALUE"]
    try:
        values = _values(name, options)
        CHECKS[name](**values)
    except (ValueError, re.error) as error:
        return [f"pattern is not a regular expression: {error}" if isinstance(error, re.error) else str(error)]
    if name == "length" and not values:
        return ["it needs min=…, max=… or both"]
    if name == "length" and values.get("max") and values.get("min", 0) > values["max"]:
        return [f"min={values['min']} is above max={values['max']}"]
    if name == "math" and importlib.util.find_spec("math_verify") is None:
        return ["it needs the package math-verify: pip install 'rlhf-pipeline[math]'"]
    return []


def _values(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Options as their functions take them: of the type of the default. Raises ValueError."""
    values: dict[str, Any] = {}
    for option, text in options.items():
        default = inspect.signature(CHECKS[name]).parameters[option].default
        if isinstance(default, (int, float)):
            kind = type(default)
            try:
                values[option] = kind(text)
            except ValueError:
                raise ValueError(f"{option}={text} is not {'a whole number' if kind is int else 'a number'}") from None
            if not 0 <= values[option] < float("inf") or (not values[option] and option not in ("min", "max")):
                raise ValueError(f"{option}={text} must be above 0")
        else:
            if text not in _CHOICES.get(option, (text,)):
                raise ValueError(f"{option}={text} is not one of {', '.join(_CHOICES[option])}")
            values[option] = text
    return values


# --- texts and answers ------------------------------------------------------------------------------------------------


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or the contents of its messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message["content"]) for message in completion)


def _share(right: Any, said: str, is_same: Callable[[str, str], bool]) -> Score:
    """1 or 0; None where the row has no right answer."""
    if right is None:
        return None
    return float(any(is_same(str(each), said) for each in (right if isinstance(right, list) else [right])))


def _is_same(right: str, said: str) -> bool:
    return _normal(answer_in(right)) == _normal(answer_in(said))


def answer_in(text: str) -> str:
    """The last \\boxed{…} of a text, else what follows the last "####" in its line, else the whole text."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 0, start + len("\\boxed")
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                return text[begin + 1 : end]
    _, mark, after = text.rpartition("####")
    return after.strip().partition("\n")[0] if mark else text


_FRACTION = re.compile(r"(-?)\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}")


def _normal(answer: str) -> Fraction | str:
    """A number by its value ("1,234.50", "$1234.5" and "2469/2" are equal), else text without what does not count."""
    text = answer.strip().strip("$").replace("\\$", "").replace("−", "-").replace("\\,", "").replace("\\!", "")
    text = _TEXT.sub(r"\1", _FRACTION.sub(r"\1\2/\3", text)).strip().rstrip(".").strip().lstrip("$")
    plain = text.replace(" ", "")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", plain):
        plain = plain.replace(",", "")
    numerator, slash, denominator = plain.partition("/")
    try:
        below = _number(denominator) if slash else Fraction(1)
        return _number(numerator) / below
    except (InvalidOperation, ValueError, ZeroDivisionError, OverflowError):
        return " ".join(text.split()).casefold()


def _number(text: str) -> Fraction:
    value = Decimal(text)
    if not value.is_finite() or abs(value.adjusted()) > 100:
        raise ValueError(text)
    return Fraction(value)
