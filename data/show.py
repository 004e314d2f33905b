"""python -m data.show: what each stage would get. The blend as a table, then examples token by token:
prompt, counted tokens of the assistant's turns, end tokens, padding, and what was cut away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from data import encode
from data.announcement import say_empty
from data.config import DataSettings
from data.divide import open_all
from data.lengths import of_judged
from data.method import OPTIONS, Division, Method, method_options
from data.preflight import problems
from data.remarks import announce_remarks, remarks_of
from data.stage_data import limits
from data.store import Store
from rlhf.command import Command
from rlhf.config import groups_of, options
from rlhf.console import say, table, warn
from rlhf.console.screen import screen
from rlhf.console.text import clean
from rlhf.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rlhf.template import Message, Template

LOOK_AT = 400  # rows of each stage that are searched for a cut row and a dropped row
STYLES = {
    "prompt": "cyan",
    "counted": "bold green",
    "chosen": "bold green",
    "rejected": "bold yellow",
    "good": "bold green",
    "bad": "bold yellow",
    "end": "bold white on magenta",
    "padding": "dim",
    "cut": "strike red",
    "dropped": "red",
}
NAMES = {True: "good", False: "bad"}  # of single responses
LEARN = click.option(
    "--learn",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="assistant turns of a conversation that count in stage 1",
)


@click.command(
    "python -m data.show",
    cls=Command,
    groups={"Model": ["model"], **groups_of(DataSettings), "Method": OPTIONS, "Examples": ["stages", "rows", "learn"]},
)
@options(DataSettings)
@click.option(
    "--model", required=True, help="model whose tokenizer and template are used: a folder, a hub name or an alias"
)
@click.option(
    "--stage",
    "stages",
    type=click.IntRange(1, 3),
    multiple=True,
    help="number of a stage to show; default: all; repeatable",
)
@click.option("--rows", type=click.IntRange(1), default=3, show_default=True, help="number of examples of each stage")
@method_options
@LEARN
def main(
    model: str,
    stages: tuple[int, ...],
    rows: int,
    learn: encode.Learn,
    method: str,
    learn_demonstrations: bool,
    **flags: Any,
) -> int:
    """Show what each stage would get from the sources: the blend, then examples token by token."""
    run = Method.of(method, flags, demonstrations=learn_demonstrations)
    settings, kinds = run.settings, run.kinds
    if other := [stage for stage in stages if stage not in kinds]:
        raise ConfigError(f"--stage {other[0]}: a run with --method {method} has no stage {other[0]}")
    if found := problems(settings, **run.needs):
        raise DataError(*found)
    stores, evaluation = open_all(settings)
    everything, divisions = [*stores, *evaluation], run.divisions(stores, evaluation)
    show_blend(everything, divisions, settings)
    for store in everything:
        remarks = remarks_of(store.info, kinds.values(), settings.read_elsewhere)
        announce_remarks(store.source.name, {**store.info, "remarks": remarks})

    from rlhf.models.loading import load_tokenizer  # torch, transformers
    from rlhf.template import Template

    template = Template(load_tokenizer(model))
    for stage in stages or tuple(kinds):
        if kinds[stage] == "unpaired":
            for line in of_judged(everything, divisions[stage][:2], template, settings):
                (say if line.level == "note" else warn)(line.text)
        show_examples(
            everything, divisions[stage][0], stage, template, settings, kind=kinds[stage], count=rows, learn=learn
        )
    return 0


def show_blend(stores: Sequence[Store], divisions: Division, settings: DataSettings) -> None:
    """Which rows of which source each stage trains on and holds out."""
    for store in stores:
        say(f"{store.source.name}: {store.info['says']} ({store.info['rows']:,} rows)")
        say_empty(store.source.name, store.info["empty"])
    columns = ["source", "weight", "examples"]
    for stage in divisions:
        columns += [f"stage {stage}", "held out"]
    lines: list[list[Any]] = []
    for number, store in enumerate(stores):
        weight = store.source.weight
        line: list[Any] = [store.source.name, "all" if weight is None else f"{weight:g}", len(store.dataset)]
        for train, held_out, _ in divisions.values():
            line += [int((train[:, 0] == number).sum()), int((held_out[:, 0] == number).sum())]
        lines.append(line)
    table(f"Rows of each stage (split {settings.data_split}, seed {settings.data_seed})", columns, lines)
    for stage, (_, _, duplicates) in divisions.items():
        for what, count in duplicates.items():
            if count:
                say(f"stage {stage}: {what.replace('_', ' ')}: {count:,}")


def show_examples(
    stores: Sequence[Store],
    rows: np.ndarray,
    stage: int,
    template: Template,
    settings: DataSettings,
    *,
    kind: encode.Kind,
    count: int,
    learn: encode.Learn = "all",
) -> None:
    """The first rows of a stage's blend; also a cut row and a dropped row, if there are any near the beginning."""
    from rich.text import Text

    shown = screen()
    records = [_record(stores, *row) for row in rows[: max(count, LOOK_AT)].tolist()]
    if not records:
        say(f"stage {stage} has no rows")
        return
    encoder = encode.Encoder(template, limits(settings), kind, learn=learn)
    # one record at a time: a conversation may have several rows
    found = [(record, encoder({name: [value] for name, value in record.items()})) for record in records]
    records = [record for record, rows_of in found for _ in rows_of["outcome"]]
    encoded = {name: [value for _, rows_of in found for value in rows_of[name]] for name in found[0][1]}
    outcomes = encoded["outcome"]
    picked = list(range(min(count, len(records))))
    for bits in (encode.CUT_PROMPT | encode.CUT_RESPONSE, encode.DROPPED, encode.OWN_ROW):
        if not any(outcomes[i] & bits for i in picked):
            picked += [i for i in range(len(records)) if outcomes[i] & bits][:1]
    longest = max(encoded["length"][i] if not outcomes[i] & encode.DROPPED else 0 for i in picked)
    for i in picked:
        record, outcome = records[i], outcomes[i]
        row = {name: values[i] for name, values in encoded.items()}
        what = "; ".join(says for bit, says in encode.SAYS.items() if outcome & bit)
        kind_of_response = NAMES[record["desirable"]] if "desirable" in record else ""
        said = filter(None, [f"stage {stage}", record["where"], kind_of_response, what])
        shown.rule(Text(clean(" · ".join(said))), align="left")
        for label, text in parts(record, row, encoder, longest=longest):
            line = Text.assemble((f"{label:>9}  ", "dim"), (clean(text), STYLES[label]))
            shown.print(line, soft_wrap=True)


def parts(
    record: dict[str, Any], row: dict[str, Any], encoder: encode.Encoder, *, longest: int
) -> list[tuple[str, str]]:
    """A row as labelled pieces of text, in the order of its tokens; for a dropped row, the question and responses."""
    template, messages = encoder.template, json.loads(record["prompt"])
    said = {name: record[name] for name in ("chosen", "rejected")}
    if "desirable" in record:
        said = {NAMES[record["desirable"]]: said["chosen" if record["desirable"] else "rejected"]}
    if row["outcome"] & encode.DROPPED:
        texts = {"prompt": messages[-1]["content"], **said}
        return [("dropped", f"{name}: {text}") for name, text in texts.items() if text is not None]
    decode = template.tokenizer.decode
    found: list[tuple[str, str]] = []
    if row["outcome"] & encode.CUT_PROMPT:
        found.append(("cut", _cut_text(messages, encoder.shorten(messages)[0])))
    if "input_ids" in row:
        before = row["input_ids"][: row["prompt_length"]]
        edges = row["learned"]
        for unlearned, start, end in zip([0, *edges[1::2]], edges[::2], edges[1::2], strict=False):
            found.append(("prompt", str(decode(row["input_ids"][unlearned:start]))))
            found += _said("counted", row["input_ids"][start:end], template)
        responses = {"counted": row["input_ids"][len(before) :]}
    else:
        before = row["prompt_ids"]
        found.append(("prompt", str(decode(before))))
        columns = {name: "response_ids" if "desirable" in record else f"{name}_ids" for name in said}
        responses = {name: row[column] for name, column in columns.items() if column in row}
    for label, ids in responses.items():
        found += _said(label, ids, template) if label != "counted" else []
        full = template.response_ids(record["chosen"] if label == "counted" else said[label])
        if row["outcome"] & encode.CUT_RESPONSE and len(full) > len(ids):
            found.append(("cut", str(decode(full[len(ids) - 1 : -1]))))
        if spare := longest - len(before) - len(ids):
            found.append(("padding", f"{spare} tokens, up to the longest row shown"))
    return found


def _said(label: str, ids: Sequence[int], template: Template) -> list[tuple[str, str]]:
    """A response, its end token apart; what the template's marks count behind that is not shown."""
    if template.end_token_id not in ids:
        return [(label, str(template.tokenizer.decode(list(ids))))]
    text = ids[: len(ids) - 1 - ids[::-1].index(template.end_token_id)]
    return [(label, str(template.tokenizer.decode(list(text)))), ("end", template.end_token)]


def _cut_text(messages: Sequence[Message], kept: Sequence[Message]) -> str:
    """The turns that a shortened prompt lost, and what its first remaining user turn lost."""
    gone = [m for m in messages[: len(messages) - len(kept) + 1] if m["role"] != "system"]
    whole, left = gone.pop()["content"], next(m["content"] for m in kept if m["role"] != "system")
    lost = whole.removesuffix(left) if whole.endswith(left) else whole.removeprefix(left)
    return "\n".join([m["content"] for m in gone] + [lost] * bool(lost))


def _record(stores: Sequence[Store], source: int, row: int, good: int | None = None) -> dict[str, Any]:
    kind = {} if good is None else {"desirable": bool(good)}
    return {**stores[source].record(row), "source": source, **kind}


if __name__ == "__main__":
    main()
