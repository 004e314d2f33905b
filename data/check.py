"""python -m data.check: everything that can be found in the data without training on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from data.announcement import said_of_kinds
from data.config import DataSettings
from data.divide import open_all
from data.encode import Learn
from data.findings import PLACES, Finding, of_leakage, of_repeats, of_source
from data.lengths import histogram, of_judged, of_lengths, of_turns, token_lengths
from data.method import OPTIONS, Method, method_options
from data.preflight import look_at
from data.show import LEARN, show_blend
from rlhf.command import Command
from rlhf.config import groups_of, options
from rlhf.console import say
from rlhf.console.screen import screen
from rlhf.console.text import clean
from rlhf.errors import EXIT_DONE, EXIT_USER, DataError

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@click.command(
    "python -m data.check",
    cls=Command,
    groups={**groups_of(DataSettings), "Method": OPTIONS, "Lengths": ["model", "learn"]},
)
@options(DataSettings)
@click.option("--model", help="model whose tokenizer and template measure lengths: a folder, a hub name or an alias")
@method_options
@LEARN
def main(model: str | None, learn: Learn, method: str, learn_demonstrations: bool, **flags: Any) -> int:
    """Check the sources without training: broken rows, answers that teach nothing, repeats, leakage, lengths.

    Ends with exit code 2 when a row would stop a run.
    """
    run = Method.of(method, flags, demonstrations=learn_demonstrations)
    settings = run.settings
    if not settings.data_path:
        raise DataError("data_path is needed: give --data-path a file, a folder or a hub dataset")
    reading = settings.model_copy(update={"skip_bad_rows": True})  # to find all of them
    if found := look_at([*settings.data_path, *settings.eval_data_path], reading, **run.needs):
        raise DataError(*found)
    stores, evaluation = open_all(reading)
    everything, divisions = [*stores, *evaluation], run.divisions(stores, evaluation)
    show_blend(everything, divisions, settings)
    elsewhere = settings.read_elsewhere
    findings = [finding for store in everything for finding in of_source(store, run.kinds.values(), elsewhere)]
    findings += of_repeats(stores)
    findings += of_leakage(stores, evaluation, settings)
    if model:
        from rlhf.models.loading import load_tokenizer  # torch, transformers
        from rlhf.template import Template

        template = Template(load_tokenizer(model))
        lengths = token_lengths(stores, template, settings)
        for name, measured in lengths.items():
            limit = settings.max_prompt_length if name == "prompt" else settings.max_response_length
            say("\n".join(histogram(name, measured.tokens, limit)))
        findings += of_lengths(stores, lengths, settings)
        findings += of_turns(stores, template, settings, learn=learn)
        if run.kinds[2] == "unpaired":
            findings += of_judged(everything, divisions[2][:2], template, settings)
    else:
        if run.kinds[2] == "unpaired":
            for part, table in zip(("train", "held_out"), divisions[2][:2], strict=True):
                good = int(table[:, 2].sum())
                say(said_of_kinds(part, good, len(table) - good))
        say("lengths in tokens are measured when --model is given")
    return show(findings)


def show(findings: Sequence[Finding]) -> int:
    """Print the findings, the worst first; the exit code."""
    from rich.text import Text

    for level, style in STYLES.items():
        for finding in [f for f in findings if f.level == level]:
            screen().print(Text.assemble((f"{level:>7}  ", style), clean(finding.text)), soft_wrap=True)
            for place in finding.places[:PLACES]:
                screen().print(Text(f"         {clean(place)}", style="dim"), soft_wrap=True)
    counts = {level: sum(f.level == level for f in findings) for level in STYLES}
    say(", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items()))
    return EXIT_USER if counts["error"] else EXIT_DONE


if __name__ == "__main__":
    main()
