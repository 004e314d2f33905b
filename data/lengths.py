"""How long prompts and responses are in tokens, and what a run does with those beyond the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data import encode
from data.announcement import of_one_kind, said_of_kinds, said_of_left_out
from data.config import DataSettings
from data.findings import Finding, opening
from data.stage_data import limits
from data.store import ROWS_AT_ONCE, Store
from data.tokens import left_out

if TYPE_CHECKING:
    from rlhf.template import Template

SAMPLED = 20_000  # rows that are measured, evenly spread over the sources
LOSS_THAT_WARNS = 0.10
WIDTH = 40  # characters of the longest bar
MERE_WORD = 20  # characters that prompts may have in common at their beginning by chance


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts or responses before any cut, the end token included, and what becomes of them
    (`encode.SAYS`)."""

    tokens: np.ndarray
    outcomes: np.ndarray


def token_lengths(stores: Sequence[Store], template: Template, settings: DataSettings) -> dict[str, Lengths]:
    """Prompts, chosen and rejected responses of a sample of rows, as a run encodes them."""
    found: dict[str, tuple[list[int], list[int]]] = {"prompt": ([], []), "chosen": ([], []), "rejected": ([], [])}
    encoder = encode.Encoder(template, limits(settings), "prompts")
    for batch in _sample(stores):
        rows = [i for i, prompt in enumerate(batch["prompt"]) if prompt]
        part = encode.with_thoughts({name: [values[i] for i in rows] for name, values in batch.items()})
        prompts, _, outcomes, tokens = encoder.prompts(part)
        thinks = [template.thinks(prompt) for prompt in prompts]
        found["prompt"][0].extend(tokens)
        found["prompt"][1].extend(outcomes)
        for name in ("chosen", "rejected"):
            own = [i for i, text in enumerate(part[name]) if text is not None]
            texts, outcomes = [part[name][i] for i in own], [0] * len(own)
            encoder.responses(texts, outcomes, thinks=[thinks[i] for i in own], lengths=found[name][0])
            found[name][1].extend(outcomes)
    return {
        name: Lengths(np.array(tokens, dtype=np.int64), np.array(outcomes, dtype=np.int64))
        for name, (tokens, outcomes) in found.items()
        if tokens
    }


def of_turns(
    stores: Sequence[Store], template: Template, settings: DataSettings, *, learn: encode.Learn
) -> list[Finding]:
    """How many assistant turns stage 1 learns in the conversations of several, of a sample of rows."""
    encoder = encode.Encoder(template, limits(settings), "demonstrations", learn=learn)
    problem = template.marks_problem()
    found = [Finding("warning", problem)] if problem else []
    count = {"talks": 0, "turns": 0, "unlearned": 0, "own": 0}
    for batch in _sample(stores):
        rows = [i for i, learned in enumerate(batch["learned"]) if learned and batch["chosen"][i] is not None]
        if not rows:
            continue
        encoded = encoder({"source": [0] * len(rows), **{n: [v[i] for i in rows] for n, v in batch.items()}})
        kept = [i for i, outcome in enumerate(encoded["outcome"]) if not outcome & encode.DROPPED]
        own = sum(bool(encoded["outcome"][i] & encode.OWN_ROW) for i in kept)
        count["own"] += own
        count["talks"] += len(kept) - own
        for name in ("turns", "unlearned"):
            count[name] += sum(encoded[name][i] for i in kept)
    if not count["talks"]:
        return found
    text = f"{count['turns']:,} assistant turns are learned in {count['talks']:,} conversations of several"
    if count["unlearned"]:
        text += f"; {count['unlearned']:,} are not (cut with their prompt, empty, or with the end token in them)"
    if count["own"]:
        text += f"; {count['own']:,} of them in rows of their own (see docs/data.md)"
    return [*found, Finding("note", text)]


@dataclass(frozen=True)
class Judged:
    """Single responses as a run learns them: how many are good and bad, why others are left out, and how many were
    looked at of how many."""

    good: int
    bad: int
    dropped: dict[str, int]
    looked_at: int
    count: int

    def says(self, part: str) -> list[str]:
        """As the run says it of this part ("train" or "held_out")."""
        lines = [said_of_kinds(part, self.good, self.bad), *said_of_left_out(part, self.dropped)]
        if self.looked_at == self.count:
            return lines
        return [f"{line} (of {self.looked_at:,} of {self.count:,} that were looked at)" for line in lines]


def judged(stores: Sequence[Store], table: np.ndarray, template: Template, settings: DataSettings) -> Judged:
    """What a run makes of the single responses of `table` (source, row, whether the good one); of many, of a sample."""
    encoder = encode.Encoder(template, limits(settings), "unpaired")
    looked_at = table[:: max(1, -(-len(table) // SAMPLED))]
    outcomes, good = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for number, store in enumerate(stores):
        own = looked_at[looked_at[:, 0] == number]
        for start in range(0, len(own), ROWS_AT_ONCE):
            part = own[start : start + ROWS_AT_ONCE]
            batch: Any = store.dataset.select(part[:, 1]).to_dict()
            rows = encoder({**batch, "source": [number] * len(part), "desirable": part[:, 2].astype(bool).tolist()})
            outcomes.append(np.array(rows["outcome"]))
            good.append(part[:, 2] == 1)
    outcome, kind = np.concatenate(outcomes), np.concatenate(good)
    kept = (outcome & encode.DROPPED) == 0
    return Judged(int((kept & kind).sum()), int((kept & ~kind).sum()), left_out(outcome), len(looked_at), len(table))


def of_judged(
    stores: Sequence[Store], parts: Sequence[np.ndarray], template: Template, settings: DataSettings
) -> list[Finding]:
    """What a run with KTO says of its good and bad responses, to train on and held out."""
    found = []
    for part, table in zip(("train", "held_out"), parts, strict=True):
        of_part = judged(stores, table, template, settings)
        found += [Finding("note", line) for line in of_part.says(part)]
        if line := of_one_kind(part, of_part.good, of_part.bad):
            sure = part == "train" and of_part.looked_at == of_part.count
            found.append(Finding("error" if sure else "warning", f"stage 2: {line}"))
    return found


def _sample(stores: Sequence[Store]) -> Iterator[dict[str, list[Any]]]:
    """Batches of rows, evenly spread over the sources."""
    every = max(1, -(-sum(len(s.dataset) for s in stores) // SAMPLED))
    for store in stores:
        for batch in store.dataset.select(range(0, len(store.dataset), every)).iter(batch_size=ROWS_AT_ONCE):
            yield dict(batch)  # type: ignore[arg-type]


def histogram(name: str, lengths: np.ndarray, limit: int) -> list[str]:
    """Lines of a bar chart in powers of two, with the limit where it falls."""
    edges = [1]
    while edges[-1] <= int(lengths.max()):
        edges.append(edges[-1] * 2)
    if limit + 1 < edges[-1]:
        edges = sorted({e for e in edges if e != limit} | {limit + 1})
    counts, _ = np.histogram(lengths, bins=[0, *edges[1:]])
    quantiles = ", ".join(f"{q:.0%} {int(np.quantile(lengths, q))}" for q in (0.5, 0.9, 0.99))
    lines = [f"tokens of {name} ({len(lengths):,} measured; {quantiles}, longest {int(lengths.max())}):"]
    low = 0
    for high, count in zip(edges[1:], counts.tolist(), strict=True):
        bar = "█" * -(-count * WIDTH // max(1, int(counts.max())))
        over = "  over the limit" if low > limit else ""
        if count:
            lines.append(f"{low:>7}-{high - 1:<6} {bar} {count:,}{over}")
        low = high
    return lines


def of_lengths(stores: Sequence[Store], lengths: dict[str, Lengths], settings: DataSettings) -> list[Finding]:
    """What the limits cut or drop, and what else a run drops when it encodes."""
    found = []
    for name, measured in lengths.items():
        prompt = name == "prompt"
        limit = settings.max_prompt_length if prompt else settings.max_response_length
        policy = settings.prompt_truncation if prompt else settings.response_truncation
        cut, long = (encode.CUT_PROMPT, encode.LONG_PROMPT) if prompt else (encode.CUT_RESPONSE, encode.LONG_RESPONSE)
        longer = f"are longer than {limit} tokens and are"
        no_room = "" if policy == "drop" else ": no character of their text fits"
        fates = {
            cut: f"{longer} cut ({policy})",
            long: f"{longer} left out{no_room}",
            encode.END_INSIDE: "spell the end token inside and are left out",
            encode.NO_TOOLS: "lose their tools, which the chat template does not write",
            encode.NO_THOUGHTS: "lose their thoughts, which the chat template does not write",
            encode.UNRENDERABLE: "cannot be rendered by the chat template and are left out",
        }
        total = len(measured.outcomes)
        for bit, fate in fates.items():
            if count := int((measured.outcomes & bit > 0).sum()):
                what = f"{count:,} of {total:,} {name}{'s' if prompt else ' responses'} ({count / total:.1%})"
                found.append(Finding("warning" if count > LOSS_THAT_WARNS * total else "note", f"{what} {fate}"))
        if prompt and policy == "keep_end" and bool((measured.outcomes & cut).any()):
            found += [
                Finding(
                    "warning",
                    f"{store.source.name}: all prompts begin with “{start[:60]}”, which keep_end removes from "
                    "prompts that are too long; raise max_prompt_length, or use prompt_truncation keep_start or drop",
                )
                for store in stores
                if len(start := opening(store)) > MERE_WORD
            ]
    return found
