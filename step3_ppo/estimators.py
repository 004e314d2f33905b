"""How advantages are estimated, and the loss that goes with it: a pure function and a row of `ESTIMATORS` for each way.

B sequences of the whole rollout batch, R response tokens, K responses to a prompt, which stand one after the other; a
group is the K responses to one prompt. Imports no torch at module level: the plan reads the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Name = Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce_pp"]
KLPlace = Literal["reward", "loss"]
LossMean = Literal["token", "sequence", "constant"]
Ratio = Literal["token", "sequence"]
STD_EPS = 1e-4  # grpo adds it to the standard deviation of a group


@dataclass(frozen=True)
class Rewarded:
    """What an estimator sees: `rewards_BR`, 0 where nothing counts, and how many responses stand for one prompt.

    The sum of a row's rewards is its R: the final score, less the KL where that is part of the rewards. Only `gae` uses
    the critic's values, `gamma` and `gae_lambda`.
    """

    rewards_BR: Tensor
    response_mask_BR: Tensor
    group_size: int = 1
    values_BR: Tensor | None = None
    gamma: float = 1.0
    gae_lambda: float = 1.0

    @property
    def of_groups(self) -> Tensor:
        """R of each response, one row for each prompt: [B / K, K]."""
        return self.rewards_BR.sum(dim=1).view(-1, self.group_size)

    def everywhere(self, advantages_PK: Tensor) -> Tensor:
        """A number for each response as one for each of its counted tokens: [B, R]."""
        return advantages_PK.reshape(-1, 1) * self.response_mask_BR.to(advantages_PK.dtype)


class Advantages(NamedTuple):
    """Advantages [B, R], as the loss takes them; returns [B, R] where they are sums over the tokens that follow."""

    advantages_BR: Tensor
    returns_BR: Tensor | None = None


def gae(r: Rewarded) -> Advantages:
    """Generalised advantage estimation with the critic's values, whitened over the whole rollout batch. PPO's own."""
    from rlhf.models.tensors import whiten
    from step3_ppo.advantages import estimate_advantages

    assert r.values_BR is not None, "gae needs the values of a critic"
    advantages_BR, returns_BR = estimate_advantages(
        r.values_BR, r.rewards_BR, r.response_mask_BR, gamma=r.gamma, gae_lambda=r.gae_lambda
    )
    return Advantages(whiten(advantages_BR, r.response_mask_BR), returns_BR)


def rloo(r: Rewarded) -> Advantages:
    """R less the mean of the other K − 1 responses to the prompt (Ahmadian et al. 2024, eq. 6).

    R of a group [1, 0, 0, 1] → [2/3, −2/3, −2/3, 2/3].
    """
    found_PK, others = r.of_groups, r.group_size - 1
    mean_of_others_PK = (found_PK.sum(dim=1, keepdim=True) - found_PK) / others
    return Advantages(r.everywhere(found_PK - mean_of_others_PK))


def grpo(r: Rewarded) -> Advantages:
    """R less the group's mean, divided by its standard deviation of a sample + 1e-4 (Shao et al. 2024, §4.1.2).

    R of a group [1, 0, 0, 1] → ±0.5 / (0.57735 + 1e-4) = ±0.8659.
    """
    found_PK = r.of_groups
    centred_PK = found_PK - found_PK.mean(dim=1, keepdim=True)
    return Advantages(r.everywhere(centred_PK / (found_PK.std(dim=1, keepdim=True) + STD_EPS)))


def dr_grpo(r: Rewarded) -> Advantages:
    """R less the group's mean: grpo without the division, which favours prompts of little spread (Liu et al. 2025).

    R of a group [1, 0, 0, 1] → [0.5, −0.5, −0.5, 0.5].
    """
    found_PK = r.of_groups
    return Advantages(r.everywhere(found_PK - found_PK.mean(dim=1, keepdim=True)))


def reinforce_pp(r: Rewarded) -> Advantages:
    """The sum of the rewards from each token on, whitened over the whole rollout batch (Hu 2025, REINFORCE++).

    Rewards [[−0.1, 0.9], [0, −1]]: returns [[0.8, 0.9], [−1, −1]] of mean −0.075 and standard deviation 0.9257 →
    [[0.945, 1.053], [−0.999, −0.999]].
    """
    from rlhf.models.tensors import whiten

    following_BR = r.rewards_BR.flip(dims=[1]).cumsum(dim=1).flip(dims=[1])
    returns_BR = following_BR * r.response_mask_BR.to(following_BR.dtype)
    return Advantages(whiten(returns_BR, r.response_mask_BR), returns_BR)


@dataclass(frozen=True)
class Objective:
    """The actor's loss: where the KL to the reference counts, over what the mean is taken, and whether the ratio of
    new and old probability is that of a token or of the whole response."""

    kl_in: KLPlace = "reward"
    loss_mean: LossMean = "token"
    ratio: Ratio = "token"


@dataclass(frozen=True)
class Estimator:
    """A way to estimate advantages. `objective` is the loss that its source uses with it.

    `grouped`: it compares the responses to one prompt, so there must be several, and a group stays in one mini-batch.
    `has_critic`: it needs values. `per_token`: advantages differ between the tokens of a response.
    """

    title: str
    estimate: Callable[[Rewarded], Advantages]
    objective: Objective
    grouped: bool = False
    has_critic: bool = False
    per_token: bool = False


ESTIMATORS: dict[Name, Estimator] = {
    "gae": Estimator("PPO", gae, Objective(), has_critic=True, per_token=True),
    "rloo": Estimator("RLOO", rloo, Objective(loss_mean="sequence", ratio="sequence"), grouped=True),
    "grpo": Estimator("GRPO", grpo, Objective(kl_in="loss", loss_mean="sequence"), grouped=True),
    "dr_grpo": Estimator("Dr. GRPO", dr_grpo, Objective(kl_in="loss", loss_mean="constant"), grouped=True),
    "reinforce_pp": Estimator("REINFORCE++", reinforce_pp, Objective(), per_token=True),
}


def uniform_groups(scores_B: Tensor, group_size: int) -> Tensor:
    """For each group whether all its scores are equal (within 1e-6), so that it tells good from bad nowhere: [B / K].

    Scores [1, 1, 1, 0] in groups of 2 → [True, False].
    """
    scores_PK = scores_B.view(-1, group_size)
    return scores_PK.amax(dim=1) - scores_PK.amin(dim=1) < 1e-6
