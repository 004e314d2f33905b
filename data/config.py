"""What a stage is told of its data; the same for all three, so that their splits agree."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from rlhf.config import Config, setting


class SourceSettings(Config):
    """How sources are read."""

    columns: str = setting("", "where columns have other names: prompt=question,chosen=best,rejected=worst")
    data_adapter: str = setting("", "file.py:function, your own row → Iterable[Example], for all sources")
    skip_bad_rows: bool = setting(False, "count and skip rows that cannot be used, instead of stopping")
    data_seed: int = setting(0, "of split and blend; the same in all stages", alike=True, ge=0)
    data_cache_dir: Path | None = setting(
        None, "where read and tokenised data are kept; by itself $RLHF_CACHE or ~/.cache/rlhf", resumable=True
    )
    num_proc: int = setting(1, "processes that tokenise", resumable=True, ge=1)


class DataSettings(SourceSettings):
    """Sources, split, blend and lengths."""

    data_path: list[str] = setting(
        [], "SOURCE[:weight]: a .jsonl, .json, .csv or .parquet file, a folder, a glob or a hub dataset org/name"
    )
    eval_data_path: list[str] = setting([], "held-out rows; without it, a part of each source is held out")
    data_split: str = setting(
        "2,4,4", "shares of the prompts that stages 1, 2 and 3 get; a prompt reaches one stage", alike=True
    )
    eval_ratio: float = setting(0.05, "share of a source's prompts that is held out", alike=True, gt=0, lt=1)
    max_samples: int | None = setting(None, "rows of the blend that a stage trains on, at most", ge=1)
    max_eval_samples: int | None = setting(512, "held-out rows that a stage evaluates on, at most", ge=1)
    max_prompt_length: int = setting(256, "tokens of a prompt", ge=1)
    max_response_length: int = setting(256, "tokens of a response, the end token included", ge=1)
    prompt_truncation: Literal["keep_end", "keep_start", "drop"] = setting(
        "keep_end", "what happens to a prompt that is too long"
    )
    response_truncation: Literal["drop", "keep_start"] = setting(
        "drop", "what happens to a response that is too long; keep_start cuts its text before the end token"
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
            raise ValueError("three numbers that are not negative, for stages 1, 2 and 3, such as 2,4,4")
        return value

    @property
    def shares(self) -> tuple[float, float, float]:
        """`data_split` as numbers."""
        first, second, third = (float(p) for p in self.data_split.split(","))
        return first, second, third


class PretrainingMixSettings(SourceSettings):
    """Plain text that is mixed into PPO, so that the actor keeps its language."""

    ptx_data: list[str] = setting([], "SOURCE[:weight] of plain text: the pretraining mix of stage 3")
    ptx_coef: float | None = setting(None, "multiplies its loss; 27.8 (InstructGPT) when ptx_data is given", ge=0)
    ptx_length: int = setting(256, "tokens of one row of pretraining text", ge=2)
    ptx_column: str = setting("text", "the column of ptx_data that holds the text")

    def reading(self) -> SourceSettings:
        """How the mix's sources are read: `columns` and `data_adapter` are for the other sources."""
        columns = "" if self.ptx_column == "text" else f"text={self.ptx_column}"
        return self.model_copy(update={"columns": columns, "data_adapter": ""})
