"""Examples → ids with exact masks: prompt ids + response ids, each made by the template; never a search in the text.

Four kinds of rows. Every row has `length`, its number of tokens, and `outcome`: KEPT, CUT_PROMPT, CUT_RESPONSE or one
of the reasons for which a row is dropped (then its lists are empty).

    demonstrations  input_ids, prompt_length, learned (start and end of each learned part, one after another),
                    turns (assistant turns that are learned), unlearned (those that were to be and are not)
    preferences     prompt_ids, chosen_ids, rejected_ids, margin
    unpaired        prompt_ids, prompt_length, response_ids, desirable
    prompts         prompt_ids, messages (JSON), kept (JSON, where rewards read columns)

A response that is kept always ends with the end token. A prompt that is too long loses its oldest turns first and then
the beginning (keep_end) or the end (keep_start) of its first remaining user turn, so what the template writes around
the turns stays whole. Every cut is at the edge of a character.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.cutting import whole_characters, without_tokens
from data.example import Answer, are_the_same, leading, prompt_json, thoughts_of
from data.learned import LearnedRow, Talk, learned_rows
from rlhf.errors import DataError, ModelError
from rlhf.marks import Span
from rlhf.rendering import DATE, as_first, is_dated, thinking
from rlhf.template import Message, Template

Kind = Literal["demonstrations", "preferences", "unpaired", "prompts"]
Learn = Literal["all", "last"]

# Bits that say what happened to a row; a row with one of DROPPED is not kept.
CUT_PROMPT, CUT_RESPONSE, LONG_PROMPT, LONG_RESPONSE = 1, 2, 4, 8
EMPTY_RESPONSE, SAME_RESPONSES, END_INSIDE, UNRENDERABLE = 16, 32, 64, 128
OWN_ROW, NO_TOOLS, NO_THOUGHTS = 256, 512, 1024  # kept as well
DROPPED = LONG_PROMPT | LONG_RESPONSE | EMPTY_RESPONSE | SAME_RESPONSES | END_INSIDE | UNRENDERABLE
SAYS = {
    CUT_PROMPT: "prompt cut to max_prompt_length",
    CUT_RESPONSE: "response cut to max_response_length",
    LONG_PROMPT: "prompt longer than max_prompt_length",
    LONG_RESPONSE: "response longer than max_response_length",
    EMPTY_RESPONSE: "empty response",
    SAME_RESPONSES: "chosen and rejected are the same",
    END_INSIDE: "response spells the end token inside",
    UNRENDERABLE: "prompt that the chat template cannot render",
    NO_TOOLS: "prompt without its tools, which the chat template does not write",
    NO_THOUGHTS: "row without its thoughts, which the chat template does not write there",
    OWN_ROW: "turn in a row of its own, since it stands otherwise in the conversation (chat template or tokens)",
}


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens, and what happens to what is longer."""

    max_prompt_length: int
    max_response_length: int
    prompt_truncation: str = "keep_end"
    response_truncation: str = "drop"


Batch = dict[str, list[Any]]
IDS = "list of int32"
COLUMNS: dict[str, dict[str, str]] = {
    "demonstrations": {
        "input_ids": IDS,
        "prompt_length": "int32",
        "learned": IDS,
        "turns": "int32",
        "unlearned": "int32",
    },
    "preferences": {"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS, "margin": "float32"},
    "unpaired": {"prompt_ids": IDS, "prompt_length": "int32", "response_ids": IDS, "desirable": "bool"},
    "prompts": {"prompt_ids": IDS, "messages": "string"},
}


class Encoder:
    """Encodes batches of stored Examples (columns of `data.store`) as rows of one kind."""

    def __init__(
        self,
        template: Template,
        limits: Limits,
        kind: Kind,
        *,
        skip_bad_rows: bool = True,
        kept: bool = False,
        learn: Learn = "all",
    ) -> None:
        self.template, self.limits, self.kind, self.skip_bad_rows = template, limits, kind, skip_bad_rows
        self.kept, self.learn = kept, learn

    def settings(self) -> dict[str, Any]:
        """Everything except the examples that the rows depend on, for the cache's key."""
        learn = {"learn": self.learn} if self.kind == "demonstrations" else {}
        tokenizer = tokenizer_key(self.template.tokenizer)
        return {"kind": self.kind, "limits": vars(self.limits), "tokenizer": tokenizer, **learn}

    def features(self) -> dict[str, str]:
        """The columns of the rows and their types."""
        kept = {"kept": "large_string"} if self.kept else {}
        return {"length": "int32", "outcome": "uint16", "source": "int32", **COLUMNS[self.kind], **kept}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Batch:
        batch = with_thoughts(batch)
        prompts, prompt_ids, outcomes, _ = self.prompts(batch)
        thinks = [self.template.thinks(prompt) for prompt in prompts]
        rows: Batch = {"length": [], "outcome": outcomes, "source": list(batch["source"])}
        if self.kind == "prompts":
            rows |= {"prompt_ids": prompt_ids, "messages": [prompt_json(p) for p in prompts]}
            rows["length"] = [len(ids) for ids in prompt_ids]
            return self._emptied(rows | ({"kept": list(batch["kept"])} if self.kept else {}))
        if self.kind == "unpaired":
            return self._emptied(rows | self._judged(batch, prompt_ids, thinks, outcomes))
        chosen = self.responses(batch["chosen"], outcomes, thinks=thinks)
        if self.kind == "demonstrations":
            return self._demonstrations(batch, prompts, prompt_ids, chosen, outcomes)
        rejected = self.responses(batch["rejected"], outcomes, thinks=thinks, may_be_empty=True)
        for i, (c, r) in enumerate(zip(chosen, rejected, strict=True)):
            if c == r:
                outcomes[i] |= SAME_RESPONSES
        rows |= {"prompt_ids": prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected}
        rows["margin"] = list(batch["margin"])
        rows["length"] = [len(p) + max(len(c), len(r)) for p, c, r in zip(prompt_ids, chosen, rejected, strict=True)]
        return self._emptied(rows)

    def _demonstrations(
        self,
        batch: Mapping[str, Sequence[Any]],
        prompts: Sequence[list[Message]],
        prompt_ids: Sequence[list[int]],
        chosen: Sequence[list[int]],
        outcomes: Sequence[int],
    ) -> Batch:
        """A row for each conversation, then those of its turns that stand alone (`data.learned`)."""
        given = batch.get("learned") or [[]] * len(prompts)
        talks: dict[int, Talk] = {}
        lost = [0] * len(prompts)
        for i, outcome in enumerate(outcomes):
            if outcome & DROPPED:
                continue
            earlier = self._earlier(batch["prompt"][i], prompts[i], given[i] or []) if self.learn == "all" else []
            lost[i] = len(given[i] or []) - len(earlier) if self.learn == "all" else 0
            cut = outcome & CUT_RESPONSE
            text = self.template.text(chosen[i][:-1]) if cut else batch["chosen"][i]
            talks[i] = Talk(prompts[i], prompt_ids[i], text, chosen[i], tuple(earlier))
        found = dict(zip(talks, learned_rows(self.template, list(talks.values())), strict=True))
        rows: Batch = {name: [] for name in self.features()}
        for i, outcome in enumerate(outcomes):
            fitting = [row for row in map(self._fitted, found.get(i, [])) if row]
            lost[i] += sum(row.turns for row in found.get(i, [])) - sum(row.turns for row in fitting)
            if i in found and not fitting:
                outcome |= LONG_RESPONSE
            for number, row in enumerate(fitting or [LearnedRow([], [], turns=0)]):
                rows["input_ids"].append(row.ids)
                rows["length"].append(len(row.ids))
                rows["prompt_length"].append(row.spans[-1].start if row.spans else 0)
                rows["learned"].append([edge for span in row.spans for edge in span])
                rows["turns"].append(row.turns)
                rows["unlearned"].append(0 if number else lost[i])
                rows["outcome"].append(OWN_ROW if number else outcome)
                rows["source"].append(batch["source"][i])
        return rows

    def _earlier(self, whole: str, kept: Sequence[Message], learned: Sequence[int]) -> list[int]:
        """The turns to learn that are left of a prompt, by their places in what is `kept` of it."""
        gone = len(json.loads(whole)) - len(kept)  # behind the system turn
        first = len(leading(kept)) + gone
        places = [turn - gone for turn in learned if turn >= first]
        texts = [kept[place]["content"] for place in places]
        return [p for p, t in zip(places, texts, strict=True) if t.strip() and self.template.end_token not in t]

    def _fitted(self, row: LearnedRow) -> LearnedRow | None:
        """A row that is not longer than the limits allow; what a template's marks have behind the last end token may
        go. None for a longer one."""
        longest = self.limits.max_prompt_length + self.limits.max_response_length
        if len(row.ids) <= longest:
            return row
        if self.template.end_token_id not in row.ids[row.spans[-1].start : longest]:
            return None
        spans = [Span(span.start, min(span.end, longest)) for span in row.spans if span.start < longest]
        return LearnedRow(row.ids[:longest], spans, row.turns)

    def _judged(
        self,
        batch: Mapping[str, Sequence[Any]],
        prompt_ids: list[list[int]],
        thinks: Sequence[bool],
        outcomes: list[int],
    ) -> Batch:
        """One response of each row, the good or the bad one, as its `desirable` says."""
        good = list(batch["desirable"])
        both = list(zip(batch["chosen"], batch["rejected"], strict=True))
        texts = [pair[not side] for pair, side in zip(both, good, strict=True)]
        responses = self.responses(texts, outcomes, thinks=thinks, may_be_empty=True)
        for i, (chosen, rejected) in enumerate(both):
            if good[i] and not chosen.strip():
                outcomes[i] |= EMPTY_RESPONSE
            if are_the_same(chosen, rejected):
                outcomes[i] |= SAME_RESPONSES
        return {
            "prompt_ids": prompt_ids,
            "prompt_length": [len(ids) for ids in prompt_ids],
            "response_ids": responses,
            "desirable": good,
            "length": [len(p) + len(r) for p, r in zip(prompt_ids, responses, strict=True)],
        }

    def prompts(
        self, batch: Mapping[str, Sequence[Any]]
    ) -> tuple[list[list[Message]], list[list[int]], list[int], list[int]]:
        """Prompts within the limit: their messages, ids, outcomes, and the tokens that they had before a cut."""
        prompts: list[list[Message]] = [json.loads(p) for p in batch["prompt"]]
        if self.template.writes_thoughts:
            prompts = [thinking(p) if self._has_thoughts(batch, i) else p for i, p in enumerate(prompts)]
        outcomes = [0] * len(prompts)
        found = self.template.encode(self._rendered(prompts, batch["where"], outcomes))
        lengths = [len(ids) for ids in found]
        for i, length in enumerate(lengths):
            if length > self.limits.max_prompt_length:
                prompts[i], found[i], outcome = self.shorten(prompts[i])
                outcomes[i] |= outcome
        return prompts, found, outcomes, lengths

    def _has_thoughts(self, batch: Mapping[str, Sequence[Any]], row: int) -> bool:
        """Whether a response of a row that counts has thoughts before it."""
        names: Sequence[str] = ("chosen",) if self.kind == "demonstrations" else ("chosen", "rejected")
        if self.kind == "unpaired":
            names = ("chosen",) if batch["desirable"][row] else ("rejected",)
        return any(name in batch and thoughts_of(batch[name][row]) for name in names)

    def _rendered(self, prompts: Sequence[list[Message]], where: Sequence[str], outcomes: list[int]) -> list[str]:
        """The text of each prompt. Raises DataError for one that the template refuses (many allow no system turn)."""
        texts = []
        for i, prompt in enumerate(prompts):
            try:
                texts.append(self.template.prompt_text(prompt))
                outcomes[i] = NO_TOOLS if self.template.leaves_out_tools(prompt) else 0
                outcomes[i] |= NO_THOUGHTS if self.template.leaves_out_thoughts(prompt) else 0
            except ModelError as error:
                if not self.skip_bad_rows:
                    raise DataError(f"{where[i]}: {error}; --skip-bad-rows leaves such rows out") from None
                outcomes[i] = UNRENDERABLE
                texts.append("")
        return texts

    def responses(
        self,
        texts: Sequence[str],
        outcomes: list[int],
        *,
        thinks: Sequence[bool] | None = None,
        may_be_empty: bool = False,
        lengths: list[int] | None = None,
    ) -> list[list[int]]:
        """Ids of responses with their end token; what is cut or must be dropped is noted in `outcomes`, the tokens
        that they had before a cut in `lengths`. `thinks` says of their prompts whether there may be thoughts behind."""
        template, longest = self.template, self.limits.max_response_length
        thoughts, thinks = [thoughts_of(text) or "" for text in texts], thinks or [False] * len(texts)
        said = zip(texts, thoughts, thinks, strict=True)
        found = template.encode([template.response_text(t, by, thinks=room) for t, by, room in said], responses=True)
        for i, ids in enumerate(found):
            written = bool(thoughts[i]) and thinks[i] and template.writes_thoughts
            if thoughts[i] and not written:
                outcomes[i] |= NO_THOUGHTS
            if not texts[i].strip() and not may_be_empty:
                outcomes[i] |= EMPTY_RESPONSE
            if template.end_token_id in ids or template.end_token in texts[i]:
                outcomes[i] |= END_INSIDE
            if lengths is not None:
                lengths.append(len(ids) + 1)
            if len(ids) + 1 > longest:
                cut = longest - 1
                if self.limits.response_truncation == "keep_start" and not written:  # else it would end in thoughts
                    cut = whole_characters(template, ids, longest - 1)
                    fits = bool(template.text(ids[:cut]).strip())
                else:
                    fits = False
                outcomes[i] |= CUT_RESPONSE if fits else LONG_RESPONSE
                ids = ids[:cut]
            found[i] = [*ids, template.end_token_id]
        return found

    def shorten(self, prompt: Sequence[Message]) -> tuple[list[Message], list[int], int]:
        """A prompt that fits: its messages, its ids and its outcome."""
        if self.limits.prompt_truncation == "drop":
            return list(prompt), [], LONG_PROMPT
        system = list(leading(prompt))
        turns = list(prompt[len(system) :])
        ids = self.template.prompt_ids([*system, *turns])
        while len(ids) > self.limits.max_prompt_length and (begins := _questions(turns)[1:]):
            turns = turns[begins[0] :]
            if not system:
                turns[0] = as_first(turns[0], prompt[0])
            ids = self.template.prompt_ids([*system, *turns])
        text = turns[0]["content"]
        keep_end = self.limits.prompt_truncation == "keep_end"
        excess = len(ids) - self.limits.max_prompt_length
        while excess > 0 and text:
            text = without_tokens(self.template.tokenizer, text, excess, keep_end=keep_end)
            turns[0] = {**turns[0], "content": text}
            ids = self.template.prompt_ids([*system, *turns])
            # A cut may split a word into more tokens than it had, so look again.
            excess = len(ids) - self.limits.max_prompt_length
        if excess > 0 or not text.strip():
            return list(prompt), [], LONG_PROMPT
        return [*system, *turns], ids, CUT_PROMPT

    def _emptied(self, rows: Batch) -> Batch:
        for i, outcome in enumerate(rows["outcome"]):
            if outcome & DROPPED:
                for name in ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids", "response_ids"):
                    if name in rows:
                        rows[name][i] = []
        return rows


def with_thoughts(batch: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """A batch whose responses are `Answer`s where the store has thoughts for them."""
    found = dict(batch)
    for name in ("chosen", "rejected"):
        thoughts = batch.get(f"{name}_thoughts") or ()
        if any(thoughts):
            found[name] = [Answer(t, by) if by else t for t, by in zip(batch[name], thoughts, strict=True)]
    return found


def _questions(turns: Sequence[Message]) -> list[int]:
    """Where the user speaks; what follows, calls of tools and their results too, belongs to it."""
    return [i for i, turn in enumerate(turns) if turn["role"] == "user"]


def tokenizer_key(tokenizer: Any) -> str:
    """A hash of everything that a tokenizer's ids and its template depend on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [type(tokenizer).__name__, vocabulary, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    if tokenizer.chat_template and is_dated(tokenizer):
        parts.append(str(DATE))
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
