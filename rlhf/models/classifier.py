"""Sequence classifiers with one output that are only run: of families whose head is more than a linear layer, too.

B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from rlhf.models.loading import Loading, fit_to_tokenizer, load_strict
from rlhf.models.scalar_model import HEAD, classifier_class


class WholeClassifier(nn.Module):
    """A classifier with its own pooling, such as an encoder's: ids and their mask [B, T] in, one score [B] out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        found: Any = self.model(input_ids=input_ids_BT, attention_mask=mask_BT.long())
        return found.logits[:, 0].float()


def load_classifier(loading: Loading) -> PreTrainedModel:
    """A sequence classifier with one output, in eval mode. Raises ModelError naming weights that are missing."""
    model = load_strict(classifier_class(loading), loading, num_labels=1)
    fit_to_tokenizer(model, loading)
    return model


def has_plain_head(model: Any) -> bool:
    """Whether the score is a linear layer without bias on a causal backbone's last state, as in stage 2."""
    head = getattr(model, HEAD, None)
    return isinstance(head, nn.Linear) and head.bias is None and type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING
