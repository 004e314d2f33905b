"""A trained reward model that is only run: sequences of ids in, scores out. Stage 3 and evaluation score with it.

B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.models.classifier import WholeClassifier, has_plain_head, load_classifier
from rlhf.models.loading import Loading
from rlhf.models.names import model_limit
from rlhf.models.scalar_model import ScalarModel, load_scalar_model, score_affine, values_at
from rlhf.models.tensors import pad_right
from rlhf.template import Message, Template
from rlhf.training import distributed
from rlhf.training.engine import build_frozen


@dataclass(frozen=True)
class RewardModel:
    """A preference scorer with its own tokenizer and template.

    `model` gives the head's output [B, T] at every position of ids [B, T]. `score_mean` and `score_std` are those of
    its raw scores on held-out chosen responses, None for a model that stage 2 did not train. `max_length` is the
    longest sequence in tokens, None for any. `pools`: the model is a whole classifier, which gives one score [B] for
    ids and the mask of those that count.
    """

    model: Any
    template: Template
    score_mean: float | None
    score_std: float | None
    max_length: int | None = None
    name: str = ""
    pools: bool = False

    def sequence(self, messages: Sequence[Message], response: str | Sequence[int], *, ended: bool) -> list[int]:
        """A prompt and a response in this model's own tokens, the last `max_length` of them.

        The response is text, or ids that are this model's as well. The end token follows it only if a stop token
        `ended` it.
        """
        said = self.template.response_ids(response, end=False) if isinstance(response, str) else response
        ids = self.ended([*self.template.prompt_ids(messages), *said], ended)
        return ids[-self.max_length :] if self.max_length else ids

    def ended(self, ids: list[int], ended: bool) -> list[int]:
        """Ids in this model's tokens with, if a stop token `ended` them, its end token: it has learned no other."""
        return [*ids, self.template.end_token_id] if ended else ids

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """The raw score of each sequence, [B]: the head's output at its last token.

        Ranks that share a sharded model call this equally often, also without sequences (the result is then empty).
        """
        device, pad = distributed.device(), int(self.template.tokenizer.pad_token_id)  # type: ignore[arg-type]
        rows = sequences or [[pad]]
        last_B = torch.tensor([len(row) - 1 for row in rows])
        if self.pools:
            ids_BT = pad_right(rows, pad)
            mask_BT = torch.arange(ids_BT.shape[1]) <= last_B[:, None]
            return self.model(ids_BT.to(device), mask_BT.to(device))[: len(sequences)]
        values_BT = self.model(pad_right(rows, pad).to(device))
        return values_at(values_BT, last_B.to(device))[: len(sequences)]

    def normalise(self, scores_B: Tensor) -> Tensor:
        """(score − score_mean) / score_std; the raw scores of a model that has neither."""
        if self.score_mean is None or self.score_std is None:
            return scores_B
        return (scores_B - self.score_mean) / self.score_std


def load_reward_model(loading: Loading, *, max_length: int | None = None, is_any: bool = False) -> RewardModel:
    """A reward model, of stage 2 or of another tool, frozen and on this process's device.

    `loading` has the model's own tokenizer. `max_length` in tokens; default: what the model's positions allow. With
    `is_any` the model may be any sequence classifier with one output, an encoder too. Raises ModelError if the folder
    holds no reward model, or one that gives every answer the same score.
    """
    assert loading.tokenizer is not None, "a reward model reads text with its own tokenizer"
    model = load_classifier(loading) if is_any else load_scalar_model(loading)
    mean, std = score_affine(model.config) or (None, None)
    pools = is_any and not has_plain_head(model)
    return RewardModel(
        model=build_frozen(
            WholeClassifier(model) if pools else ScalarModel(model), zero_stage=loading.zero_stage, dtype=loading.dtype
        ),
        template=Template(loading.tokenizer),
        score_mean=mean,
        score_std=std,
        max_length=max_length or model_limit(model.config.to_dict()),
        name=loading.name,
        pools=pools,
    )


def same_tokens(left: Template, right: Template) -> bool:
    """Whether two templates render and tokenise alike, so that one sequence of ids serves both their models."""
    if left.tokenizer.get_vocab() != right.tokenizer.get_vocab() or left.end_token_id != right.end_token_id:
        return False
    probe: Any = [{"role": "user", "content": "Is 2+2 = 4?\n"}]
    return left.prompt_ids(probe) == right.prompt_ids(probe) and left.response_ids("Yes.") == right.response_ids("Yes.")
