"""The prompts that the models of a run are compared on afterwards."""

from __future__ import annotations

import json

from data.config import DataSettings
from data.divide import divide, open_all
from data.encode import Encoder
from data.stage_data import limits
from data.tokens import encoded
from rlhf import process
from rlhf.json_lines import write_json_lines
from rlhf.template import Template
from step2_dpo.config import DPOConfig
from step2_dpo.spec import HELD_OUT_NAME


def write_held_out_prompts(config: DPOConfig, template: Template) -> None:
    """Write the held-out prompts of the stage's part of the data, each once, from rank 0."""
    if not process.is_main():
        return
    first, rest, _ = config.shares
    plain = {name: getattr(config, name) for name in DataSettings.model_fields}
    settings = DataSettings(**{**plain, "data_split": f"{first},0,{rest}"})
    stores, evaluation = open_all(settings)
    everything = [*stores, *evaluation]
    _, table, _ = divide(stores, evaluation, settings, stage=3)
    encoder = Encoder(template, limits(config), "prompts", skip_bad_rows=config.skip_bad_rows)
    dataset, _ = encoded(everything, table, encoder, config)
    write_json_lines(
        config.output_dir / HELD_OUT_NAME, ({"prompt": json.loads(messages)} for messages in dataset["messages"])
    )
