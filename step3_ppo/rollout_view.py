"""How a rollout is shown: tokens shaded by their figures, iterations as a table, two of them side by side.

Text of prompts and responses comes from models and data: it becomes rich's Text, never markup, and its control
characters are dropped. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf.console.text import clean, figure

if TYPE_CHECKING:
    from rich.text import Text

Row = dict[str, Any]
SHADES = {"kl": "KL, nats", "advantage": "advantage", "value": "value"}  # the last one only with a critic
NARROWEST_BESIDE = 72  # columns below which two responses stand one under the other
_MORE, _LESS = (190, 40, 40), (40, 80, 190)  # colours of values above and below 0
_SHADED = 0.06  # of the scale: smaller values stay without colour


@dataclass(frozen=True)
class Iteration:
    """The rows of one iteration, each with its place in the rollout under `row` (from 1)."""

    number: int
    rows: list[Row]


def kl_of(row: Row) -> float:
    """The KL of the whole response, in nats."""
    return sum(_known(row["kl"]))


ORDERS: dict[str, Callable[[Row], float]] = {
    "row": lambda row: -row["row"],
    "score": lambda row: _or_worst(row["score"]),
    "kl": kl_of,
    "length": lambda row: len(row["tokens"]),
}


def ordered(rows: Iterable[Row], order: str, *, reverse: bool = False) -> list[Row]:
    """Highest first; with "row" in the order of generation. `reverse` reverses the order."""
    found = sorted(rows, key=ORDERS[order], reverse=True)
    return found[::-1] if reverse else found


# --- numbers ----------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """The figures of a whole iteration."""
    scores = _known(row["score"] for row in rows)
    mean = sum(scores) / max(len(scores), 1)
    names = dict.fromkeys(name for row in rows for name in row.get("rewards", {}))
    rewards = {name: _known(row.get("rewards", {}).get(name) for row in rows) for name in names}
    return {
        "mean score": mean,
        **{f"mean {name}": sum(found) / len(found) if found else math.nan for name, found in rewards.items()},
        "standard deviation": math.sqrt(sum((s - mean) ** 2 for s in scores) / max(len(scores), 1)),
        "nats of KL per response": sum(map(kl_of, rows)) / len(rows),
        "tokens per response": sum(len(row["tokens"]) for row in rows) / len(rows),
        "share that ended": sum(bool(row["stopped"]) for row in rows) / len(rows),
    }


def shades_of(rows: Iterable[Row]) -> list[str]:
    """The figures of tokens that all these rows have."""
    return [shade for shade in SHADES if all(shade in row for row in rows)]


def scale_of(rows: Iterable[Row], shade: str) -> float:
    """The value that gets the full colour: 95% of tokens lie below it, so an outlier does not make the rest pale."""
    sizes = sorted(abs(v) for row in rows for v in _known(row[shade]))
    return max(sizes[int(0.95 * (len(sizes) - 1))], 1e-6) if sizes else 1.0


def pairs(left: Iteration, right: Iteration, order: str, *, reverse: bool = False) -> list[tuple[Row, Row]]:
    """Pairs of rows to read side by side: those that answer the same prompt; if there are none, those of equal rank."""
    there: dict[str, list[Row]] = {}
    for row in ordered(right.rows, order, reverse=reverse):
        there.setdefault(_prompt(row), []).append(row)
    ranked = ordered(left.rows, order, reverse=reverse)
    same = [(row, there[_prompt(row)].pop(0)) for row in ranked if there.get(_prompt(row))]
    return same or list(zip(ranked, ordered(right.rows, order, reverse=reverse), strict=False))


def _prompt(row: Row) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in row["prompt"])


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _or_worst(value: float | None) -> float:
    return -math.inf if value is None else value


# --- text -------------------------------------------------------------------------------------------------------------


def headline(row: Row) -> str:
    """`row 3 · score 1.2 (0.9 as PPO saw it) · KL 2.1 nats · 14 tokens, ended`, and the score of each of several
    rewards."""
    ended = "ended" if row["stopped"] else "cut at the limit"
    score, final = ("not finite" if s is None else figure(s) for s in (row["score"], row["final_score"]))
    return (
        f"row {row['row']} · score {score} ({final} as PPO saw it){_rewards(row)} · KL {figure(kl_of(row))} nats · "
        f"{len(row['tokens'])} tokens, {ended}"
    )


def _rewards(row: Row) -> str:
    """` · exact 1, length 0.4`: the rewards that score the row."""
    shown = [f"{clean(name)} {figure(value)}" for name, value in row.get("rewards", {}).items() if value is not None]
    return f" · {', '.join(shown)}" if shown else ""


def prompt_text(row: Row) -> Text:
    """The messages of the prompt, a line or more each."""
    from rich.text import Text

    lines = [Text.assemble((f"{clean(m['role'])}: ", "dim"), (clean(m["content"]), "cyan")) for m in row["prompt"]]
    return Text("\n").join(lines)


def response_text(row: Row, shade: str, scale: float) -> Text:
    """The response's tokens, each on a background as strong as its value, then how it ended."""
    from rich.text import Text

    text = Text()
    tokens = row["tokens"][:-1] if row["stopped"] else row["tokens"]
    for place, (token, value) in enumerate(zip(tokens, row[shade], strict=False)):
        shown = clean(token).replace("\n", "↵\n")
        shown = shown.lstrip(" ") if place == 0 else shown  # the template's, between prompt and response
        text.append(shown, _style(value, scale))
    if row["stopped"]:
        text.append(f" {clean(row['tokens'][-1])} ", f"reverse {_style(row[shade][-1], scale)}".strip())
    else:
        text.append(" ✂ cut", "bold yellow")
    return text


def strongest(row: Row, shade: str, *, count: int = 3) -> str:
    """The tokens with the largest values, as words: what the colours say, for pipes and for the colour-blind."""
    found = sorted(
        ((v, t) for v, t in zip(row[shade], row["tokens"], strict=False) if v is not None),
        key=lambda item: -abs(item[0]),
    )
    named = ", ".join(f"{clean(token)!r} {value:+.3g}" for value, token in found[:count])
    return f"most {SHADES[shade]}: {named}" if named else ""


def legend(shade: str, scale: float) -> Text:
    """What the colours stand for, from −scale to scale."""
    from rich.text import Text

    text = Text(f"{SHADES[shade]}: ", "dim")
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        text.append(f" {share * scale:+.2g} ", _style(share * scale, scale))
    return text


def _style(value: float | None, scale: float) -> str:
    if value is None:
        return "bold yellow"
    strength = min(abs(value) / scale, 1.0)
    if strength < _SHADED:
        return ""
    red, green, blue = (round(strength * part) for part in (_MORE if value > 0 else _LESS))
    return f"white on rgb({red},{green},{blue})"
