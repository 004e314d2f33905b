"""The reference model with which TRL's numbers were made, as a folder."""

from __future__ import annotations

from pathlib import Path

from scripts import trl_numbers


def save_reference(folder: Path) -> Path:
    trl_numbers.build_model(0).save_pretrained(folder)
    trl_numbers.tokenizer().save_pretrained(folder)
    return folder
