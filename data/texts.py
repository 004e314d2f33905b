"""Plain texts of the pretraining mix → rows of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.encode import IDS, Batch, tokenizer_key


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
