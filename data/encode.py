"""Examples → ids with exact masks: prompt ids + response ids, each made by the template; never a search in the text.

Three kinds of rows. Every row has `length`, its number of tokens, and `outcome`: KEPT, CUT_PROMPT, CUT_RESPONSE or one
of the reasons for which a row is dropped (then its lists are empty).

    demonstrations  input_ids, prompt_length
    preferences     prompt_ids, chosen_ids, rejected_ids, margin
    prompts         prompt_ids, messages (JSON)

A response that is kept always ends with the end token. A prompt that is too long loses its oldest turns first and then
the beginning (keep_end) or the end (keep_start) of its first remaining user turn, so what the template writes around
the turns stays whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.example import prompt_json
from rlhf.errors import DataError, ModelError
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

    def __init__(self, template: Template, limits: Limits, kind: Kind, *, skip_bad_rows: bool = True) -> None:
        self.template, self.limits, self.kind, self.skip_bad_rows = template, limits, kind, skip_bad_rows

    def settings(self) -> dict[str, Any]:
        """Everything except the examples that the rows depend on, for the cache's key."""
        return {"kind": self.kind, "limits": vars(self.limits), "tokenizer": tokenizer_key(self.template.tokenizer)}

    def features(self) -> dict[str, str]:
        """The columns of the rows and their types."""
        return {"length": "int32", "outcome": "uint8", "source": "int32", **COLUMNS[self.kind]}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Batch:
        prompts: list[list[Message]] = [json.loads(p) for p in batch["prompt"]]
        outcomes = [0] * len(prompts)
        prompt_ids = self.tokenise(self._rendered(prompts, batch["where"], outcomes))
        for i, ids in enumerate(prompt_ids):
            if len(ids) > self.limits.max_prompt_length:
                prompts[i], prompt_ids[i], outcomes[i] = self.shorten(prompts[i])
        rows: Batch = {"length": [], "outcome": outcomes, "source": list(batch["source"])}
        if self.kind == "prompts":
            rows |= {"prompt_ids": prompt_ids, "messages": [prompt_json(p) for p in prompts]}
            rows["length"] = [len(ids) for ids in prompt_ids]
            return self._emptied(rows)
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

    def _rendered(self, prompts: Sequence[list[Message]], where: Sequence[str], outcomes: list[int]) -> list[str]:
        """The text of each prompt. Raises DataError for one that the template refuses (many allow no system turn)."""
        texts = []
        for i, prompt in enumerate(prompts):
            try:
                texts.append(self.template.render(prompt))
            except ModelError as error:
                if not self.skip_bad_rows:
                    raise DataError(f"{where[i]}: {error}; --skip-bad-rows leaves such rows out") from None
                outcomes[i] = UNRENDERABLE
                texts.append("")
        return texts

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts in one call, which fast tokenizers spread over the cores."""
        return self.template.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def responses(self, texts: Sequence[str], outcomes: list[int], *, may_be_empty: bool = False) -> list[list[int]]:
        """Ids of responses with their end token; what is cut or must be dropped is noted in `outcomes`."""
        template, longest = self.template, self.limits.max_response_length
        found = self.tokenise([template.prefix + (t.strip() if template.strips else t) for t in texts])
        for i, ids in enumerate(found):
            if not texts[i].strip() and not may_be_empty:
                outcomes[i] |= EMPTY_RESPONSE
            if template.end_token_id in ids:
                outcomes[i] |= END_INSIDE
            if len(ids) + 1 > longest:
                outcomes[i] |= CUT_RESPONSE if self.limits.response_truncation == "keep_start" else LONG_RESPONSE
                ids = ids[: longest - 1]
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
        excess = len(ids) - self.limits.max_prompt_length
        while excess > 0 and text:
            text = self._without(text, excess)
            turns[0] = {"role": "user", "content": text}
            ids = self.template.prompt_ids([*system, *turns])
            # A cut may split a word into more tokens than it had, so look again.
            excess = len(ids) - self.limits.max_prompt_length
        if excess > 0 or not text.strip():
            return list(prompt), [], LONG_PROMPT
        return [*system, *turns], ids, CUT_PROMPT

    def _without(self, text: str, tokens: int) -> str:
        """`text` without `tokens` tokens at its beginning (keep_end) or end (keep_start)."""
        tokenizer = self.template.tokenizer
        keep_end = self.limits.prompt_truncation == "keep_end"
        if not tokenizer.is_fast:
            gone = max(1, len(text) * tokens // max(1, len(self.tokenise([text])[0])))
            return text[gone:] if keep_end else text[:-gone]
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if tokens >= len(spans):
            return ""
        shorter = text[spans[tokens][0] :] if keep_end else text[: spans[-tokens - 1][1]]
        return shorter if len(shorter) < len(text) else ""

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
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
