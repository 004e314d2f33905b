"""A causal language model that returns log-probabilities of counted tokens, never a [B, T, V] tensor of logits.

B sequences, T tokens, N counted tokens of the batch (flat, row by row), D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhf.errors import ModelError
from rlhf.models.loading import backbone, embedding_rows, unwrap
from rlhf.models.logprob_function import Logits
from rlhf.models.packed_rows import packed_inputs
from rlhf.models.tensors import chunked_logprobs
from rlhf.training.zero_internals import is_sharded


class TokenLogprobs(NamedTuple):
    """What a language model says of the counted tokens of a batch, row by row: [N] each, in nats, in fp32.

    `logprobs_N` is log softmax(logits / temperature) at the token itself, given what stands before it. `entropy_N` is
    −Σ p·log p of the whole distribution there; it is zeros unless it was asked for. Both are differentiable
    (`logprob_function.TargetLogprobs`). It is a tuple because ZeRO-3 looks for tensors in what a module returns.
    """

    logprobs_N: Tensor
    entropy_N: Tensor


class LogprobHead(nn.Linear):
    """An output embedding that can also give the log-probabilities of target tokens.

    The loop over blocks of tokens is inside this one module call. Under ZeRO-3 all ranks must call a module equally
    often, however many tokens each has.
    """

    logit_scale: float
    logit_cap: float

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None, **options: Any) -> Any:
        """Logits [..., V] in fp32 of hidden states [..., D]. With targets, from hidden states [N, D]: what
        `chunked_logprobs` gives."""
        if targets_N is None:
            return Logits(scale=self.logit_scale, cap=self.logit_cap).of(hidden, self.weight, self.bias)
        return chunked_logprobs(
            hidden, targets_N, self.weight, self.bias, scale=self.logit_scale, cap=self.logit_cap, **options
        )


class CausalModel(nn.Module):
    """A language model whose forward gives log-probabilities of tokens. `lm` is a transformers model, with or without
    adapters."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm
        check_head(unwrap(lm))
        install_logprob_head(unwrap(lm))

    @property
    def config(self) -> Any:
        """The transformers config of the model inside."""
        return unwrap(self.lm).config

    def forward(
        self,
        input_ids_BT: Tensor,
        count_BT: Tensor,
        *,
        position_ids_BT: Tensor | None = None,
        temperature: float = 1.0,
        forbidden_BT: Tensor | None = None,
        forbidden_ids: Sequence[int] = (),
        with_entropy: bool = False,
    ) -> TokenLogprobs:
        """Log-probabilities of the tokens where `count_BT` is True, each given the tokens before it in its row.

        Rows must be padded on the right. Attention is causal, so padding changes nothing before it, and no attention
        mask is needed. A packed batch brings positions that restart with each demonstration in a row (`packed_rows`).
        Column 0 must not count: nothing stands before it. Where `forbidden_BT` is True the tokens `forbidden_ids` have
        probability 0.
        """
        extra = {} if position_ids_BT is None else packed_inputs(unwrap(self.lm), position_ids_BT)
        hidden_BTD = backbone(self.lm)(input_ids=input_ids_BT, use_cache=False, **extra)[0]
        count = count_BT[:, 1:]  # the hidden state at t − 1 predicts the token at t
        logprobs_N, entropy_N = unwrap(self.lm).get_output_embeddings()(
            hidden_BTD[:, :-1][count],
            input_ids_BT[:, 1:][count],
            temperature=temperature,
            forbidden_N=None if forbidden_BT is None else forbidden_BT[:, 1:][count],
            forbidden_ids=forbidden_ids,
            with_entropy=with_entropy,
        )
        return TokenLogprobs(logprobs_N, entropy_N)


def install_logprob_head(model: Any) -> None:
    """Turn the model's output embedding into a `LogprobHead`, in place. Its weights do not change."""
    head: Any = model.get_output_embeddings()
    if isinstance(head, LogprobHead):
        return
    assert head.__class__ is nn.Linear, f"the output embedding is a {type(head).__name__}, not a plain linear layer"
    head.__class__ = LogprobHead
    head.logit_scale, head.logit_cap = _scale_and_cap(model.config.get_text_config())


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., V] in fp32 of hidden states [..., D], with the scale and the cap that the model's family adds."""
    head = model.get_output_embeddings()
    logits = head(hidden).float()
    if isinstance(head, LogprobHead):
        return logits
    scale, cap = _scale_and_cap(model.config.get_text_config())
    return Logits(scale=scale, cap=cap).shape(logits)


def _scale_and_cap(config: Any) -> tuple[float, float]:
    """What a family does to its logits: it multiplies by a factor, and bounds them by a soft cap (0: it does not)."""
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    cap = next((float(value) for name in caps if (value := getattr(config, name, None))), 0.0)
    divides = config.model_type != "hyperclovax"  # Granite divides by what HyperCLOVA X multiplies with
    for name, divided in (("logits_scaling", divides), ("logit_scale", False), ("lm_head_multiplier", False)):
        factor = getattr(config, name, None)
        if factor and isinstance(factor, int | float) and config.model_type != "mpt":  # which never reads its own
            return (1.0 / float(factor) if divided else float(factor)), cap
    return 1.0, cap


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raise ModelError where the logits of a model are not those of `head_logits`: a family may do with them what is
    not known here, and everything would be trained on wrong numbers. Weights that are sharded, or not there
    yet, cannot be asked."""
    parameters = list(model.parameters())
    if isinstance(model.get_output_embeddings(), LogprobHead) or any(
        is_sharded(p) or not p.numel() for p in parameters
    ):
        return
    ids = torch.tensor([[1, 2, 3, 4]], device=parameters[0].device) % embedding_rows(model)
    was_training = model.training
    model.eval()
    try:
        wanted = model(input_ids=ids, use_cache=False).logits.float()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        model.train(was_training)  # this device lacks a kernel for the dtype, or the model wants more than ids
        return
    try:
        found = head_logits(model, backbone(model)(input_ids=ids, use_cache=False)[0])
        same = found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0.02, atol=0.02 * _spread(wanted))
    except (AttributeError, IndexError, TypeError, RuntimeError):
        same = False
    finally:
        model.train(was_training)
    if not same:
        raise ModelError(
            f"a model of type {model.config.model_type} is not supported: its logits are more than its output "
            "embedding times what its layers give"
        )


def _spread(logits: Tensor) -> float:
    return float(logits.std()) or 1.0
