"""The tokens that end a response: the template's, which is trained, and those that the model's configs list.

Many chat models list several, because they were pretrained with another end token than they chat with. A model may draw
any of them, so generation stops at each, and each is kept when a model is exported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from rlhf.template import Template


def listed(config: Any) -> list[int]:
    """`eos_token_id` of a config, as a list: it may be a number, a list or nothing."""
    ids = config.get("eos_token_id") if isinstance(config, dict) else getattr(config, "eos_token_id", None)
    return [] if ids is None else [int(i) for i in ids] if isinstance(ids, Sequence) else [int(ids)]


def listed_in(folder: str) -> list[int]:
    """What the configs of a model's folder list; nothing where there are none."""
    found: list[int] = []
    # no such file, or one that is found broken when the model is loaded
    with contextlib.suppress(OSError, ValueError):
        found += listed(GenerationConfig.from_pretrained(folder))
    with contextlib.suppress(OSError, ValueError):
        found += listed(PretrainedConfig.get_config_dict(folder)[0])
    return list(dict.fromkeys(found))


def end_ids(model: Any, template: Template) -> list[int]:
    """All tokens that end a response of a language model, the trained one first.

    A config that was never set has its family's default, which may be any word of the vocabulary. So an id that stands
    alone counts only if the tokenizer added the token.
    """
    tokenizer: Any = template.tokenizer
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    rows, found = model.get_input_embeddings().num_embeddings, [template.end_token_id]
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        ids = listed(config)
        found += [i for i in ids if 0 <= i < rows and (len(ids) > 1 or i in added)]
    return [i for i in dict.fromkeys(found) if i != tokenizer.pad_token_id]
