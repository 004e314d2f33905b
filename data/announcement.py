"""Prints what a stage got: the shape of each source, the blend as a table, what was left out and cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.remarks import announce_remarks
from rlhf.console import say, table, warn

LOSS_THAT_WARNS = 0.10  # share of a stage's rows


def announce(report: Mapping[str, Any]) -> None:
    """Print the report of a stage (`StageData.report`)."""
    for source in report["sources"]:
        say(f"{source['source']}: {source['shape']} ({source['rows']:,} rows)")
    blended = max(1, sum(s["train"] for s in report["sources"]))
    table(
        f"Data of stage {report['stage']} (split {report['data_split']})",
        ["source", "weight", "examples", "train", "share", "held out"],
        [
            [
                source["source"],
                "all" if source["weight"] is None else f"{source['weight']:g}",
                source["examples"],
                source["train"],
                f"{source['train'] / blended:.0%}",
                source["held_out"],
            ]
            for source in report["sources"]
        ],
    )
    for source in report["sources"]:
        announce_remarks(source["source"], source)
        say_empty(source["source"], source["empty"])
    for what, count in report["duplicates"].items():
        if count:
            say(f"{what.replace('_', ' ')}: {count:,}")
    for part in ("train", "held_out"):
        counts = report[part]
        name = part.replace("_", "-")
        for line in said_of_left_out(part, counts["dropped"]):
            say(line)
        for what, count in counts["cut"].items():
            say(f"{name} rows kept: {count:,} × {what}")
        if turns := said_of_turns(counts):
            say(f"{name} rows: {turns}")
        lost, offered = sum(counts["dropped"].values()), counts["rows"] + sum(counts["dropped"].values())
        if lost > LOSS_THAT_WARNS * offered:
            warn(
                f"stage {report['stage']} loses {lost:,} of {offered:,} {name} rows ({lost / offered:.0%}); python -m "
                "data.check shows the lengths; max_prompt_length, max_response_length or the truncation policies help"
            )


def said_of_turns(counts: Mapping[str, Any]) -> str:
    """How many assistant turns are learned, where these are not one of each row."""
    turns, unlearned = counts.get("turns", 0), counts.get("unlearned", 0)
    if turns <= counts["rows"] and not unlearned:
        return ""
    lost = f"; {unlearned:,} are not (cut with their prompt, empty, or with the end token in them)" if unlearned else ""
    return f"{turns:,} assistant turns are learned{lost}"


def said_of_left_out(part: str, dropped: Mapping[str, int]) -> list[str]:
    """Which rows of a part ("train" or "held_out") are left out, and why."""
    return [f"{part.replace('_', '-')} rows left out: {count:,} × {what}" for what, count in dropped.items()]


def said_of_kinds(part: str, good: int, bad: int) -> str:
    """How many single responses of a part are good, and how many bad."""
    return f"{part.replace('_', '-')} responses: {good:,} good, {bad:,} bad"


def of_one_kind(part: str, good: int, bad: int) -> str:
    """What is wrong where all responses of a part are good, or all bad; else nothing."""
    if good and bad:
        return ""
    line = f"all {part.replace('_', '-')} responses are {'good' if good else 'bad'}"
    if part == "train":
        return f"{line}: this stage needs both kinds; give rows with a label, or pairs, of both"
    return f"{line}, so there are no figures that compare both; a larger eval_ratio or --eval-data-path helps"


def say_empty(source: str, files: Sequence[str]) -> None:
    """Say which files of a source are empty, if there are any."""
    if files:
        more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
        say(f"{source}: {files[0]}{more} {'is' if len(files) == 1 else 'are'} empty and left out")


def announce_pretraining(report: Mapping[str, Any]) -> None:
    """Print the report of the pretraining mix (`Rows.report`)."""
    for source in report["sources"]:
        say(f"{source['source']}: {source['shape']} ({source['texts']:,} texts in the pretraining mix)")
        say_empty(source["source"], source["empty"])
        announce_remarks(source["source"], source)
    say(f"pretraining mix: {report['rows']:,} rows, {report['tokens']:,} tokens")
