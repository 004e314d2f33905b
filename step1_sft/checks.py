"""What can be said of stage 1's inputs before torch is loaded."""

from __future__ import annotations

from data import preflight
from data.packing import packing_problem
from rlhf.models.names import check_model, length_problems, read_config
from step1_sft.config import SFTConfig


def problems(config: SFTConfig) -> list[str]:
    """One line for each thing that is wrong with the model or the data."""
    found = check_model(config.model, flag="--model", kind="language")
    longest = config.max_prompt_length + config.max_response_length
    if not found:
        found += length_problems(config.model, longest)
        problem = packing_problem(read_config(config.model).get("model_type", "")) if config.packing else None
        found += [problem] if problem else []
    return found + preflight.problems(config, stage=1)
