"""What keeps attention inside each demonstration of a packed row: masks, or positions to make them from.

A packed row's positions restart with each demonstration. Where all layers of a model are alike, it is given the one
mask that they need. Where some have a window, most families in transformers make each kind's mask from the positions;
the others are given one mask for each kind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from rlhf.models.attention import has_windows

# Families with windows that do not look for demonstrations in the positions, but take a mask for each kind of layer.
TAKE_MASKS_BY_KIND = {"gpt_oss"}


def packed_inputs(lm: Any, position_ids_BT: Tensor) -> dict[str, Any]:
    """The inputs that rows with these positions add to a transformers model's others."""
    config = lm.config.get_text_config()
    shape = torch.empty((*position_ids_BT.shape, 0), dtype=lm.dtype, device=position_ids_BT.device)
    make: dict[str, Any] = {
        "config": config, "inputs_embeds": shape, "attention_mask": None, "past_key_values": None,
        "position_ids": position_ids_BT, "allow_is_causal_skip": False,
    }  # fmt: skip
    inputs: dict[str, Any] = {"position_ids": position_ids_BT}
    if not has_windows(config):
        inputs["attention_mask"] = create_causal_mask(**make)
    elif config.model_type in TAKE_MASKS_BY_KIND:
        inputs["attention_mask"] = {
            "full_attention": create_causal_mask(**make),
            "sliding_attention": create_sliding_window_causal_mask(**make),
        }
    return inputs
