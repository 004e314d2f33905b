"""A backbone with a linear head to one scalar per position: the reward model or the critic.

B sequences, T tokens, D the backbone's output size.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from rlhf.errors import ModelError
from rlhf.models.loading import Loading, backbone, fit_to_tokenizer, load_strict, read_model_config, unwrap
from rlhf.training.engine import gathered

HEAD = "score"
SMALLEST_STD = 1e-6  # of scores that tell answers apart


class ScalarHead(nn.Linear):
    """A head whose output is fp32 whatever the weights are: bf16's 8 bits would tie scores that differ."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float())


class ScalarModel(nn.Module):
    """`model` (a transformers sequence classifier with one label, or one with adapters) behind a forward that returns
    the head's output at every position."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        head: Any = unwrap(model).get_submodule(HEAD)
        assert isinstance(head, nn.Linear) and head.bias is None, "the head is a linear layer without bias"
        head.__class__ = ScalarHead

    @property
    def config(self) -> Any:
        return unwrap(self.model).config

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Scalars [B, T] in fp32. Rows are padded on the right, so causal attention needs no mask."""
        hidden_BTD = backbone(self.model)(input_ids=input_ids_BT, use_cache=False)[0]
        head: Any = unwrap(self.model).get_submodule(HEAD)
        return head(hidden_BTD)[..., 0]


def load_scalar_model(loading: Loading, *, new_head: bool = False, seed: int = 0) -> PreTrainedModel:
    """A scalar model. With `new_head` its backbone comes from a causal model and the head is drawn with std 1/√(D+1);
    without, a folder that lacks the head is a ModelError."""
    model = load_strict(
        classifier_class(loading),
        loading,
        may_miss=(f"{HEAD}.",) if new_head else (),
        may_be_left=("lm_head", "embed_out", "head.weight") if new_head else (),
        num_labels=1,
    )
    if not isinstance(getattr(model, HEAD, None), nn.Linear):
        raise ModelError(f"{loading.name}: {type(model).__name__} has no linear head '{HEAD}'; choose another family")
    fit_to_tokenizer(model, loading)
    if new_head:
        draw_head(model, seed)
        model.config.score_mean = model.config.score_std = None
    return model


def classifier_class(loading: Loading) -> Any:
    """What loads a family's sequence classifier: transformers' own, or the linear head of the same name on the family's
    backbone where transformers has none (Granite, Cohere, OLMoE, …). Both write and read the same kind of folder.
    """
    config: Any = read_model_config(loading)
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForSequenceClassification
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    base = next(kind for kind in causal.__mro__ if kind.__name__.endswith("PreTrainedModel"))
    name = causal.__name__.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    return _classifier(f"{name}ForSequenceClassification", base, causal.base_model_prefix)


@functools.cache
def _classifier(name: str, base: type, prefix: str) -> type:
    """A class of this name: the backbone under `prefix`, as in the family's language model, and a head `score`.

    It counts as one of the family's module: what transformers takes for foreign code, it initialises in another way.
    """
    fields = {"base_model_prefix": prefix, "__module__": base.__module__}
    return type(name, (GenericForSequenceClassification, base), fields)


def draw_head(model: PreTrainedModel, seed: int) -> None:
    """Weights of the head from a normal with std 1/√(D+1) (Huang et al. 2024), D as the head sees it."""
    head: Any = model.get_submodule(HEAD)
    generator = torch.Generator().manual_seed(seed)
    with gathered([head.weight], modify=True), torch.no_grad():
        drawn = torch.randn((1, head.in_features), generator=generator) * (head.in_features + 1) ** -0.5
        head.weight.copy_(drawn.to(head.weight.dtype))


def values_at(values_BT: Tensor, index_B: Tensor) -> Tensor:
    """The scalar of each row at its index: [B]."""
    return values_BT.gather(1, index_B[:, None])[:, 0]


def score_affine(config: Any) -> tuple[float, float] | None:
    """`(score_mean, score_std)` as stage 2 stored them; None for a model that it did not train. Raises ModelError if
    all scores were alike."""
    mean, std = getattr(config, "score_mean", None), getattr(config, "score_std", None)
    if mean is None or std is None:
        return None
    if not std > SMALLEST_STD:
        raise ModelError(f"the reward model gives every answer the same score (score_std {std:.2e}); train it again")
    return float(mean), float(std)
