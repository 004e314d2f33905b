"""Settings of a stage's data; the same for all three stages, so that their splits agree."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import field_validator

from rlhf.config import Config, setting


class SourceSettings(Config):
    """How sources are read."""

    help_groups: ClassVar = {
        "Data": ("columns", "data_adapter", "skip_bad_rows", "data_seed", "data_cache_dir", "num_proc")
    }

    columns: str = setting("", "names of the data's columns, such as prompt=question,chosen=best")
    data_adapter: str = setting(
        "", "function that reads each row, as file.py:function, or the hub dataset whose function is used"
    )
    skip_bad_rows: bool = setting(False, "rows that cannot be used: counted and left out, instead of an error")
    data_seed: int = setting(0, "seed of split and blend; the same in all stages", alike=True, ge=0)
    data_cache_dir: Path | None = setting(
        None, "folder of read and tokenised data; default: $RLHF_CACHE or ~/.cache/rlhf", resumable=True
    )
    num_proc: int = setting(1, "number of processes that tokenise", resumable=True, ge=1)


class DataSettings(SourceSettings):
    """Sources, split, blend and lengths."""

    help_groups: ClassVar = {
        "Data": (
            *("data_path", "eval_data_path", "columns", "max_prompt_length", "max_response_length", "max_samples"),
            *("max_eval_samples", "data_split", "eval_ratio", "prompt_truncation", "response_truncation"),
            *("read_elsewhere",),
        )
    }

    data_path: list[str] = setting(
        [],
        "SOURCE[:weight], a file, a folder, a glob, an address such as s3://… or a hub dataset; repeatable",
    )
    eval_data_path: list[str] = setting([], "held-out rows; default: a part of each source; repeatable")
    read_elsewhere: list[str] = setting(
        [], "columns that another stage reads, or * for all: not named as unused; repeatable", resumable=True
    )
    data_split: str = setting("2,4,4", "shares of the prompts for stages 1, 2 and 3, such as 2,4,4", alike=True)
    eval_ratio: float = setting(0.05, "held-out share of the prompts of each source", alike=True, gt=0, lt=1)
    max_samples: int | None = setting(None, "largest number of rows that a stage trains on", ge=1)
    max_eval_samples: int | None = setting(512, "largest number of held-out rows that a stage evaluates on", ge=1)
    max_prompt_length: int = setting(256, "longest prompt, in tokens", ge=1)
    max_response_length: int = setting(256, "longest response, in tokens, end token included", ge=1)
    prompt_truncation: Literal["keep_end", "keep_start", "drop"] = setting(
        "keep_end", "what is kept of a prompt that is too long; drop: the row is left out"
    )
    response_truncation: Literal["drop", "keep_start"] = setting(
        "drop", "what is kept of a response that is too long; keep_start: the start of its text, and the end token"
    )

    @field_validator("data_split")
    @classmethod
    def _three_shares(cls, value: str) -> str:
        parts = value.split(",")
        try:
            shares = [float(p) for p in parts]
        except ValueError:
            shares = []
        if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
            raise ValueError("give three numbers, none negative, for stages 1, 2 and 3, such as 2,4,4")
        return value

    @property
    def shares(self) -> tuple[float, float, float]:
        """`data_split` as numbers."""
        first, second, third = (float(p) for p in self.data_split.split(","))
        return first, second, third


class PreferenceSettings(DataSettings):
    """The same of a method without stage 3: the pairs of its prompts are learned too; stage 1 keeps the prompts that it
    has."""

    @property
    def shares(self) -> tuple[float, float, float]:
        first, second, third = super().shares
        return first, second + third, 0.0


class PretrainingMixSettings(SourceSettings):
    """Plain text that is mixed into PPO, so that the actor keeps its language."""

    help_groups: ClassVar = {"Pretraining mix": ("ptx_data", "ptx_coef", "ptx_length", "ptx_column")}

    ptx_data: list[str] = setting([], "SOURCE[:weight] of plain text mixed into PPO; repeatable")
    ptx_coef: float | None = setting(
        None, "weight of the loss on the text of ptx-data; default: 27.8, as in InstructGPT", ge=0
    )
    ptx_length: int = setting(256, "length of a row of pretraining text, in tokens", ge=2)
    ptx_column: str = setting("text", "column of ptx-data that holds the text")

    def reading(self) -> SourceSettings:
        """How the sources of the mix are read; `columns` and `data_adapter` hold for the other sources only."""
        columns = "" if self.ptx_column == "text" else f"text={self.ptx_column}"
        return self.model_copy(update={"columns": columns, "data_adapter": ""})
