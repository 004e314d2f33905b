"""The comparison of models that answered the same prompts: its figures and tables. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf import console

SHOWN_CHARACTERS = 240  # of a prompt or response in the terminal's table
# Kinds of scores, and their names in tables.
KINDS = {"score": "score", "reward_model": "reward model", "reward": "reward"}


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and its standard error s/√n (s with n − 1); a single value has no error. [0, 1, 2] → 1 ± 0.577."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return {"mean": mean, "stderr": None}
    return {"mean": mean, "stderr": math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)}


def compare(values: Sequence[float], first: Sequence[float]) -> dict[str, Any]:
    """The mean of a model's values, and its gain and win rate against the first model, prompt by prompt.

    A tie is half a win. `first` [0.2, 0.5] and `values` [0.4, 0.5]: gain 0.1, win rate 0.75.
    """
    pairs = list(zip(values, first, strict=True))
    wins = [1.0 if v > f else 0.5 if v == f else 0.0 for v, f in pairs]
    return {
        **mean_and_error(values),
        "gain": mean_and_error([v - f for v, f in pairs]),
        "win_rate": mean_and_error(wins),
    }


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` indices, evenly spread: 3 of 10 are 0, 3, 6."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def summary(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the result's table, as text."""
    kinds = [kind for kind in KINDS if any(kind in model for model in result["models"])]
    parts = {kind: list(result["models"][0][kind].get("parts", {})) for kind in kinds}
    columns = ["model", *(c for kind in kinds for c in (KINDS[kind], "wins", *parts[kind])), "length", "ended"]
    rows = []
    for number, model in enumerate(result["models"]):
        row = [model["label"]]
        for kind in kinds:
            row += [plus_minus(model[kind]), plus_minus(model[kind]["win_rate"], percent=True) if number else "–"]
            row += [f"{model[kind]['parts'][part]['mean']:.2f}" for part in parts[kind]]
        rows.append([*row, plus_minus(model["length"], digits=1), f"{model['end_rate']:.0%}"])
    return columns, rows


def plus_minus(value: Mapping[str, float | None], *, digits: int = 3, percent: bool = False) -> str:
    """`0.512 ± 0.034`, or `62% ± 4%`."""
    unit = (lambda v: f"{v:.0%}") if percent else (lambda v: f"{v:.{digits}f}")
    return unit(value["mean"]) + (f" ± {unit(value['stderr'])}" if value["stderr"] is not None else "")


def show(result: Mapping[str, Any]) -> None:
    """Print the samples side by side, and the figures."""
    labels = [model["label"] for model in result["models"]]
    if result["samples"]:
        rows: list[list[str]] = []
        for sample in result["samples"]:
            rows.append([_short(sample["prompt"]), *(_answer(sample["responses"][label]) for label in labels)])
            rows.append([""] * (1 + len(labels)))
        console.table("samples", ["prompt", *labels], rows[:-1])
    console.table(f"{result['prompts']['count']} prompts", *summary(result))


def _answer(response: Mapping[str, Any]) -> str:
    return "\n".join([_short(response["text"]) or "(nothing)", ", ".join(score_texts(response))]).rstrip()


def score_texts(response: Mapping[str, Any]) -> list[str]:
    """A sample's scores as text, with the parts: "score 0.800", "correct 1.00"."""
    scores = [f"{text} {response[kind]:.3f}" for kind, text in KINDS.items() if kind in response]
    return [*scores, *(f"{part} {value:.2f}" for part, value in response.get("parts", {}).items())]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()}…"
