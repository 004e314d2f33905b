"""Settings of stage 3 that choose how it learns: estimator, groups, the loss of the actor. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace

from data.config import DataSettings
from rlhf.config import setting
from rlhf.stage_config import BatchSettings, several
from step3_ppo import estimators
from step3_ppo.estimators import ESTIMATORS, Estimator, Objective

# Settings that only the critic, or only gae, reads.
CRITIC_SETTINGS = (
    *("critic_from", "critic_learning_rate", "critic_warmup_iterations", "cliprange_value"),
    *("gamma", "gae_lambda", "whiten_rewards"),
)


class MethodSettings(DataSettings, BatchSettings):
    """How advantages are estimated, and the loss that goes with it. What is left open, the estimator's row says."""

    advantage_estimator: estimators.Name = setting(
        "gae",
        "way to estimate the advantages; gae: PPO with a critic, the others need none; rloo, grpo and dr_grpo compare "
        "the responses to one prompt",
    )
    rollout_batch_size: int = setting(64, "responses sampled in one iteration, over all ranks", ge=1)
    responses_per_prompt: int = setting(1, "responses sampled for each prompt", ge=1)
    kl_in: estimators.KLPlace | None = setting(
        None, "place of the KL to the reference: the rewards, or the loss; default: the loss with grpo and dr_grpo"
    )
    loss_mean: estimators.LossMean | None = setting(
        None,
        "mean that the actor's loss is: over tokens; over sequences, each the mean of its tokens; or the sum over "
        "tokens divided by a constant, rows × max_response_length. default: sequence with rloo and grpo, constant with "
        "dr_grpo, else token",
    )
    ratio: estimators.Ratio | None = setting(
        None,
        "what the ratio of new and old probability is of: a token, or a whole sequence, whose loss is then not divided "
        "by its length; default: sequence with rloo, else token",
    )
    cliprange_high: float | None = setting(
        None, "range of the probability ratio above 1; default: cliprange, as below 1", gt=0
    )
    drop_uniform_groups: bool = setting(False, "prompts left out of a step if all responses to them get the same score")

    @property
    def estimator(self) -> Estimator:
        """The row of the table that `advantage_estimator` names."""
        return ESTIMATORS[self.advantage_estimator]

    @property
    def objective(self) -> Objective:
        """The loss of the actor: the estimator's own, where the settings do not say otherwise."""
        chosen = {each.name: getattr(self, each.name) for each in fields(Objective)}
        return replace(self.estimator.objective, **{name: value for name, value in chosen.items() if value is not None})

    @property
    def group_size(self) -> int:
        """Rows that stay together in a mini-batch: the responses to one prompt, where they are compared."""
        return self.responses_per_prompt if self.estimator.grouped else 1

    @property
    def absent_roles(self) -> Collection[str]:
        return () if self.estimator.has_critic else ("critic",)

    @property
    def unread(self) -> Mapping[str, str]:
        return {} if self.estimator.has_critic else dict.fromkeys(CRITIC_SETTINGS, "advantage_estimator")

    def method(self) -> str:
        objective, size = self.objective, self.group_size
        compared = f", {several(size, 'response')} to a prompt" if self.estimator.grouped else ""
        mean = {"token": "tokens", "sequence": "sequences", "constant": f"rows × {self.max_response_length} tokens"}
        return (
            f"{self.estimator.title} ({self.advantage_estimator}{compared}), "
            f"{'a' if self.estimator.has_critic else 'no'} critic; KL in the {objective.kl_in}; ratio of each "
            f"{objective.ratio}; loss over {mean[objective.loss_mean]}"
        )

    def method_problems(self) -> list[str]:
        """What of estimator, groups and loss does not go together."""
        found, name, size = [], self.advantage_estimator, self.responses_per_prompt
        if self.estimator.grouped and size == 1:
            found.append(
                f"step3_ppo.advantage_estimator={name} compares the responses to one prompt, and responses_per_prompt "
                "is 1; use --responses-per-prompt 4"
            )
        elif self.rollout_batch_size % size == 0 and self.mini_batch_size % self.group_size:
            fits = [n for n in range(size, self.rollout_batch_size + 1, size) if self.rollout_batch_size % n == 0]
            nearest = sorted(sorted(fits, key=lambda n: abs(n - self.mini_batch_size))[:3])
            found.append(
                f"step3_ppo.mini_batch_size={self.mini_batch_size} cuts a prompt's responses_per_prompt={size} "
                f"responses, which {name} keeps in one step"
                + (f"; try {', '.join(map(str, nearest))}" if nearest else "")
            )
        if self.drop_uniform_groups and not self.estimator.grouped:
            found.append(
                f"step3_ppo.drop_uniform_groups is set but advantage_estimator is {name}, which compares no groups: it "
                "has no effect; drop one of them"
            )
        found += [
            f"step3_ppo.{unread} is set but advantage_estimator is {name}, which has no critic: it has no effect; drop "
            "one of them"
            for unread in self.unread
            if self.changed(unread)
        ]
        if self.objective.ratio == "sequence":
            if self.estimator.per_token:
                found.append(
                    f"step3_ppo.ratio=sequence: the advantages of {name} differ between the tokens of a response; use "
                    "--ratio token, or advantage_estimator rloo"
                )
            elif self.objective.loss_mean != "sequence":
                found.append(
                    f"step3_ppo.loss_mean={self.objective.loss_mean}: with ratio sequence each response has one loss, "
                    "whose mean is over sequences; use --ratio token too"
                )
        return found
