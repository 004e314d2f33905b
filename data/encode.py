"""Examples → ids with exact masks: prompt ids + response ids, each made by the template; never a search in the text.

Three kinds of rows. Every row has `length`, its number of tokens, and `outcome`: KEPT, CUT_PROMPT, CUT_RESPONSE or one
of the reasons for which a row is dropped (then its lists are empty).

    demonstrations  input_ids, prompt_length
    preferences     prompt_ids, chosen_ids, rejected_ids, margin
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
from data.example import prompt_json
from rlhf.errors import DataError, ModelError
from rlhf.rendering import DATE, is_dated
from rlhf.template import Message, Template

Kind = Literal["demonstrations", "preferences", "prompts"]

# Bits that say what happened to a row; rows with only the first two are kept.
CUT_PROMPT, CUT_RESPONSE, LONG_PROMPT, LONG_RESPONSE = 1, 2, 4, 8
EMPTY_RESPONSE, SAME_RESPONSES, END_INSIDE, UNRENDERABLE = 16, 32, 64, 128
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
    "demonstrations": {"input_ids": IDS, "prompt_length": "int32"},
    "preferences": {"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS, "margin": "float32"},
    "prompts": {"prompt_ids": IDS, "messages": "string"},
}


class Encoder:
    """Encodes batches of stored Examples (columns of `data.store`) as rows of one kind."""

    def __init__(
        self, template: Template, limits: Limits, kind: Kind, *, skip_bad_rows: bool = True, kept: bool = False
    ) -> None:
        self.template, self.limits, self.kind, self.skip_bad_rows = template, limits, kind, skip_bad_rows
        self.kept = kept

    def settings(self) -> dict[str, Any]:
        """Everything except the examples that the rows depend on, for the cache's key."""
        return {"kind": self.kind, "limits": vars(self.limits), "tokenizer": tokenizer_key(self.template.tokenizer)}

    def features(self) -> dict[str, str]:
        """The columns of the rows and their types."""
        kept = {"kept": "large_string"} if self.kept else {}
        return {"length": "int32", "outcome": "uint8", "source": "int32", **COLUMNS[self.kind], **kept}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Batch:
        prompts, prompt_ids, outcomes, _ = self.prompts(batch)
        rows: Batch = {"length": [], "outcome": outcomes, "source": list(batch["source"])}
        if self.kind == "prompts":
            rows |= {"prompt_ids": prompt_ids, "messages": [prompt_json(p) for p in prompts]}
            rows["length"] = [len(ids) for ids in prompt_ids]
            return self._emptied(rows | ({"kept": list(batch["kept"])} if self.kept else {}))
        chosen = self.responses(batch["chosen"], outcomes)
        if self.kind == "demonstrations":
            rows["input_ids"] = [p + c for p, c in zip(prompt_ids, chosen, strict=True)]
            rows["prompt_length"] = [len(p) for p in prompt_ids]
            rows["length"] = [len(ids) for ids in rows["input_ids"]]
            return self._emptied(rows)
        rejected = self.responses(batch["rejected"], outcomes, may_be_empty=True)
        for i, (c, r) in enumerate(zip(chosen, rejected, strict=True)):
            if c == r:
                outcomes[i] |= SAME_RESPONSES
        rows |= {"prompt_ids": prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected}
        rows["margin"] = list(batch["margin"])
        rows["length"] = [len(p) + max(len(c), len(r)) for p, c, r in zip(prompt_ids, chosen, rejected, strict=True)]
        return self._emptied(rows)

    def prompts(
        self, batch: Mapping[str, Sequence[Any]]
    ) -> tuple[list[list[Message]], list[list[int]], list[int], list[int]]:
        """Prompts within the limit: their messages, ids, outcomes, and the tokens that they had before a cut."""
        prompts: list[list[Message]] = [json.loads(p) for p in batch["prompt"]]
        outcomes = [0] * len(prompts)
        found = self.template.encode(self._rendered(prompts, batch["where"], outcomes))
        lengths = [len(ids) for ids in found]
        for i, length in enumerate(lengths):
            if length > self.limits.max_prompt_length:
                prompts[i], found[i], outcomes[i] = self.shorten(prompts[i])
        return prompts, found, outcomes, lengths

    def _rendered(self, prompts: Sequence[list[Message]], where: Sequence[str], outcomes: list[int]) -> list[str]:
        """The text of each prompt. Raises DataError for one that the template refuses (many allow no system turn)."""
        texts = []
        for i, prompt in enumerate(prompts):
            try:
                texts.append(self.template.prompt_text(prompt))
            except ModelError as error:
                if not self.skip_bad_rows:
                    raise DataError(f"{where[i]}: {error}; --skip-bad-rows leaves such rows out") from None
                outcomes[i] = UNRENDERABLE
                texts.append("")
        return texts

    def responses(
        self, texts: Sequence[str], outcomes: list[int], *, may_be_empty: bool = False, lengths: list[int] | None = None
    ) -> list[list[int]]:
        """Ids of responses with their end token; what is cut or must be dropped is noted in `outcomes`, the tokens
        that they had before a cut in `lengths`."""
        template, longest = self.template, self.limits.max_response_length
        found = template.encode([template.response_text(text) for text in texts], responses=True)
        for i, ids in enumerate(found):
            if not texts[i].strip() and not may_be_empty:
                outcomes[i] |= EMPTY_RESPONSE
            if template.end_token_id in ids or template.end_token in texts[i]:
                outcomes[i] |= END_INSIDE
            if lengths is not None:
                lengths.append(len(ids) + 1)
            if len(ids) + 1 > longest:
                cut = longest - 1
                if self.limits.response_truncation == "keep_start":
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
        system = [m for m in prompt[:1] if m["role"] == "system"]
        turns = list(prompt[len(system) :])
        ids = self.template.prompt_ids([*system, *turns])
        while len(ids) > self.limits.max_prompt_length and len(turns) > 1:
            turns = turns[2:]
            ids = self.template.prompt_ids([*system, *turns])
        text = turns[0]["content"]
        keep_end = self.limits.prompt_truncation == "keep_end"
        excess = len(ids) - self.limits.max_prompt_length
        while excess > 0 and text:
            text = without_tokens(self.template.tokenizer, text, excess, keep_end=keep_end)
            turns[0] = {"role": "user", "content": text}
            ids = self.template.prompt_ids([*system, *turns])
            # A cut may split a word into more tokens than it had, so look again.
            excess = len(ids) - self.limits.max_prompt_length
        if excess > 0 or not text.strip():
            return list(prompt), [], LONG_PROMPT
        return [*system, *turns], ids, CUT_PROMPT

    def _emptied(self, rows: Batch) -> Batch:
        for i, outcome in enumerate(rows["outcome"]):
            if outcome & DROPPED:
                for name in ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids"):
                    if name in rows:
                        rows[name][i] = []
        return rows


class TextEncoder:
    """Plain texts → rows of exactly `length` ids: texts are joined by EOS and cut; what is left of a batch is dropped.

    A batch is joined on its own, so the result does not depend on the number of processes.
    """

    kind = "pretraining"

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "length": self.length, "tokenizer": tokenizer_key(self.tokenizer)}

    def features(self) -> dict[str, str]:
        return {"input_ids": IDS, "length": "int32"}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Batch:
        stream: list[int] = []
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        for ids in self.tokenizer(list(batch["text"]), add_special_tokens=False)["input_ids"]:
            stream += ids + end
        size = min(self.length, max(2, len(stream)))
        blocks = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
        return {"input_ids": blocks, "length": [len(b) for b in blocks]}


def tokenizer_key(tokenizer: Any) -> str:
    """A hash of everything that a tokenizer's ids and its template depend on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [type(tokenizer).__name__, vocabulary, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    if tokenizer.chat_template and is_dated(tokenizer):
        parts.append(str(DATE))
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
