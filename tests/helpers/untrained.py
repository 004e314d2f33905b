"""What decides a demo's base model, without its training: trained weights differ from machine to machine in their last
digits, so golden tests compare this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from scripts import tiny_base
from scripts.tiny_base import TinyBaseSettings


class _Weightless:
    def save_pretrained(self, folder: object) -> None: ...

    def parameters(self) -> list[object]:
        return []


def untrained(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """From now on base models are not trained; filled when one is made: its vocabulary, template, the very batches of
    ids, and how the model is built and trained on them."""
    decided: dict[str, object] = {}

    def without_training(tokenizer: Any, batches: Iterator[Any], of: TinyBaseSettings) -> tuple[Any, float]:
        decided["vocabulary"] = tokenizer.get_vocab()
        decided["template"] = tokenizer.chat_template
        decided["batches"] = [ids_BT.tolist() for ids_BT in batches]
        decided["model"] = tiny_base.architecture(tokenizer, of)
        decided["optimizers"] = tiny_base.optimizer_options(of)
        decided["learning_rates"] = [tiny_base.learning_rate_factor(step, 50) for step in range(50)]
        decided["gradient_norm"] = tiny_base.LARGEST_GRADIENT_NORM
        return _Weightless(), 0.0

    monkeypatch.setattr(tiny_base, "pretrain", without_training)
    return decided
