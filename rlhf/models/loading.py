"""Tokenizers and causal language models: loaded strictly, pad ≠ end token, dropout as asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from rlhf import console
from rlhf.errors import ConfigError, ModelError, UserError
from rlhf.models.attention import serve_on_cpu
from rlhf.models.checks import refuse_not_finite, without_adapter
from rlhf.models.end_tokens import end_ids, listed_in
from rlhf.models.names import NO_TEMPLATE, resolve
from rlhf.rendering import DATE, is_dated
from rlhf.stage_config import RunSettings, dtype_problems, resolve_dtype
from rlhf.template import Template, install_template
from rlhf.training import distributed
from rlhf.training.engine import DTYPES, gathered, zero3_config
from rlhf.training.zero_internals import full_shape

# transformers' bars and reports are off; `load_strict` checks what matters in a loaded model.
hf_logging.disable_progress_bar()
hf_logging.set_verbosity_error()

VOCABULARY_MULTIPLE = 64
# Parts of the names of whatever is random in training mode: dropout, layers left out, the noise of routers.
_RANDOM = ("drop", "jitter")
# Model type → a number that is named like noise and is none: a threshold of the router, in evaluation mode as well.
_NO_NOISE = {"phimoe": "router_jitter_noise"}
# Modules that draw in training mode, whatever the config says: this one draws the experts of a token.
_DRAWING = {"PhimoeTopKRouter"}


@dataclass(frozen=True)
class Loading:
    """Which model is loaded, and how: everything that the loaders of this package need.

    `name` is a folder, a hub name or an alias. With a `tokenizer` the embeddings grow to hold its added tokens (to a
    multiple of 64), and its end and pad ids are written into the configs, before other end ids that they list. At
    `zero_stage` 3 the weights are sharded over the ranks while they are read.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase | None = None
    dtype: torch.dtype = torch.float32
    zero_stage: int = 0
    no_dropout: bool = False
    trust_remote_code: bool = False

    @classmethod
    def of(
        cls,
        config: RunSettings,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        role: str = "model",
        no_dropout: bool | None = None,
    ) -> Loading:
        """How a stage loads the model of one of its roles (`trained_engines`, `frozen_models` of its config)."""
        return cls(
            name,
            tokenizer,
            dtype=dtype_of(config.dtype),
            zero_stage=config.zero_stages(gpus=distributed.on_gpu())[role],
            no_dropout=config.no_dropout if no_dropout is None else no_dropout,
            trust_remote_code=config.trust_remote_code,
        )

    @contextlib.contextmanager
    def sharded(self) -> Iterator[None]:
        """While inside, transformers shards the weights that it reads or resizes as ZeRO-3 will; below ZeRO-3 nothing
        changes. transformers keeps the config in a global, which must not outlive the loading of one model."""
        config = zero3_config(self.zero_stage, self.dtype)
        if config is None:
            yield
            return
        from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

        keep_alive = HfDeepSpeedConfig(config)
        try:
            yield
        finally:
            unset_hf_deepspeed_config()
            del keep_alive


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of a `dtype` setting on this process's device. Raises ConfigError for one that it lacks."""
    gpus, bf16 = distributed.on_gpu(), distributed.gpu_has_bf16()
    if problems := dtype_problems(name, where="dtype", gpus=gpus, bf16=bf16):
        raise ConfigError(*problems)
    return DTYPES[resolve_dtype(name, gpus=gpus, bf16=bf16)]


def load_tokenizer(name: str, *, trust_remote_code: bool = False, own_template: bool = False) -> Any:
    """The tokenizer of a model, with a chat template, padded on the right by a token that is not the end token. With
    `own_template` one that has no template is a ModelError; otherwise it gets the project's."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"{name}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    if own_template and not tokenizer.chat_template:
        raise ModelError(f"{name}: {NO_TEMPLATE}")
    install_template(tokenizer)
    tokenizer.padding_side = "right"
    _separate_pad(tokenizer, Template(tokenizer), listed_in(resolve(name)))
    if is_dated(tokenizer):
        _say_date()
    return tokenizer


@cache
def _say_date() -> None:
    console.warn(
        f"the chat template writes today's date; all prompts get {DATE:%d %b %Y}, so that they are the same in each "
        "stage and when a run is resumed"
    )


def _separate_pad(tokenizer: Any, template: Template, more_end_ids: Sequence[int]) -> None:
    """Give the tokenizer a pad token that neither ends a turn nor is written by the template."""
    used = {template.end_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, *more_end_ids}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        return
    written = set(template.prompt_ids([{"role": "user", "content": "x"}]))
    added = tokenizer.added_tokens_decoder  # id → AddedToken
    spare = {
        token.content: index
        for index, token in added.items()
        if token.special and index not in used and index not in written and token.content != tokenizer.unk_token
    }
    for part in ("pad", "reserved", "unused", ""):
        for content in spare:
            if part in content.lower():
                tokenizer.pad_token = content
                return
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})


def load_causal_lm(loading: Loading) -> PreTrainedModel:
    """A causal language model, in eval mode. Raises ModelError naming any weight that is missing or left over."""
    model = load_strict(AutoModelForCausalLM, loading)
    fit_to_tokenizer(model, loading)
    return model


def load_strict(
    auto_class: Any,
    loading: Loading,
    *,
    may_miss: tuple[str, ...] = (),
    may_be_left: tuple[str, ...] = (),
    **config_changes: Any,
) -> PreTrainedModel:
    """`from_pretrained` with every weight accounted for; weights whose names hold a `may_…` part are excused."""
    name, folder, trusted = loading.name, resolve(loading.name), loading.trust_remote_code
    config = read_model_config(loading, **config_changes)
    try:
        if loading.no_dropout:
            remove_dropout(config)
        with loading.sharded(), without_adapter(folder) as source:
            model, info = auto_class.from_pretrained(
                source, config=config, dtype=loading.dtype, trust_remote_code=trusted, output_loading_info=True
            )
        model.name_or_path = model.config._name_or_path = folder
    except UserError:
        raise
    except Exception as error:
        raise ModelError(f"{name}: the model cannot be loaded: {_first_line(error)}") from error
    missing = [k for k in info["missing_keys"] if not any(part in k for part in may_miss)]
    left = [k for k in info["unexpected_keys"] if not any(part in k for part in may_be_left)]
    for what, keys in (("lacks", missing), ("holds what the model does not know:", left)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(f"{name}: the checkpoint {what} {', '.join(sorted(keys)[:3])}{more}")
    if info.get("mismatched_keys"):
        raise ModelError(f"{name}: weights of another shape than the config says: {sorted(info['mismatched_keys'])[0]}")
    if loading.no_dropout:
        remove_dropout(model)
    refuse_not_finite(model, name, dtype=str(loading.dtype).removeprefix("torch."))
    serve_on_cpu(model)
    return model.eval()


def read_model_config(loading: Loading, **changes: Any) -> Any:
    """The transformers config of a model, with changed fields."""
    try:
        return AutoConfig.from_pretrained(resolve(loading.name), trust_remote_code=loading.trust_remote_code, **changes)
    except Exception as error:
        raise ModelError(f"{loading.name}: the model cannot be loaded: {_first_line(error)}") from error


def remove_dropout(held: Any) -> None:
    """Set every dropout to 0, and the noise of routers: in a config and the configs inside it, or in a model's modules.

    Families name them in many ways, so every number counts whose name says so. A model is asked as well, because some
    keep the number that they were built with. Modules that draw without such a number stay in evaluation mode.
    """
    if isinstance(held, nn.Module):
        kept = _no_noise(getattr(held, "config", None))
        for module in held.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            if type(module).__name__ in _DRAWING:
                module.eval()
                module.train = _stay  # type: ignore[method-assign]
            _zero_random(vars(module), kept)
        return
    fields = held if isinstance(held, dict) else vars(held)
    _zero_random(fields, _no_noise(held))
    for name, value in fields.items():
        if isinstance(value, (dict, PreTrainedConfig)) and name not in ("id2label", "label2id"):
            remove_dropout(value)


def _stay(mode: bool = True) -> None:
    """In place of a module's `train`, which its parents call: the module keeps its mode."""


def _no_noise(config: Any) -> str | None:
    kind = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    return _NO_NOISE.get(kind) if isinstance(kind, str) else None


def _zero_random(fields: dict[str, Any], kept: str | None) -> None:
    for name, value in fields.items():
        if type(value) in (int, float) and name != kept and any(part in name for part in _RANDOM):
            fields[name] = type(value)(0)


def fit_to_tokenizer(model: PreTrainedModel, loading: Loading) -> None:
    """Grow the embeddings to hold the tokenizer, and write its end and pad ids into the model's configs, which keep the
    other end ids that they list; nothing happens without a tokenizer."""
    tokenizer = loading.tokenizer
    if tokenizer is None:
        return
    rows, needed = embedding_rows(model), rows_needed(tokenizer)
    if needed > rows:
        target = math.ceil(needed / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        with loading.sharded():
            model.resize_token_embeddings(target, mean_resizing=False)
        _fill_new_rows(model, rows)
    model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.pad_token_id = tokenizer.pad_token_id
        ids = end_ids(model, Template(tokenizer))
        generation.eos_token_id = ids if len(ids) > 1 else ids[0]


def _fill_new_rows(model: PreTrainedModel, first: int) -> None:
    """Rows of the embeddings from `first` on become the mean of those before (Hewitt 2021).

    A random row's logit is near 0, which lies far above all others in some families (GPT-2's are near −100), so the
    model would say nothing but the new tokens.
    """
    embeddings = [e for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None]
    parameters = list({id(p): p for e in embeddings for p in e.parameters(recurse=False)}.values())
    with gathered(parameters, modify=True), torch.no_grad():
        for parameter in parameters:
            parameter[first:] = parameter[:first].mean(dim=0)


def rows_needed(tokenizer: Any) -> int:
    """The embeddings that hold every token: one more than the largest id. A vocabulary with gaps has fewer tokens."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def embedding_rows(model: PreTrainedModel) -> int:
    weight: Any = model.get_input_embeddings().weight
    return int(full_shape(weight)[0])


def unwrap(model: Any) -> Any:
    """The transformers model inside an adapter wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: Any) -> nn.Module:
    """The transformer below the head: maps ids to hidden states [B, T, D]."""
    return unwrap(model).base_model


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
