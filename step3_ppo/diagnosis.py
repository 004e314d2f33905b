"""A line for each known failure mode when its sign shows in an iteration's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from step3_ppo.config import PPOConfig

Metrics = Mapping[str, float]
REPEAT = 20  # iterations before a sign that is still there is named again


@dataclass(frozen=True)
class Sign:
    """`shows` in so many iterations in a row, and then `says` what it means."""

    shows: Callable[[Metrics, PPOConfig], bool]
    says: Callable[[Metrics, PPOConfig], str]
    in_a_row: int = 1


SIGNS = (
    Sign(
        lambda m, c: m["ppo/kl"] < -0.05 and (c.top_p < 1 or c.top_k > 0),
        lambda m, c: f"KL {m['ppo/kl']:.2f} < 0: sampling cuts mass (top_p {c.top_p:g}, top_k {c.top_k}); use 1 and 0",
    ),
    Sign(
        lambda m, c: m["ppo/kl"] < -0.5 and c.top_p == 1 and c.top_k == 0,
        lambda m, c: f"KL {m['ppo/kl']:.2f} < 0: the sampler's weights are not those that are trained",
    ),
    Sign(
        lambda m, c: m["ppo/eos_rate"] == 0 and m["ppo/response_length"] >= c.max_response_length,
        lambda m, c: f"all responses hit the limit of {c.max_response_length} tokens: EOS is not learned (train stage 1 "
        "longer) or max_response_length is short",
    ),
    Sign(
        lambda m, c: m["ppo/eos_rate"] < 0.5 and m["ppo/eos_rate"] > 0,
        lambda m, c: f"only {m['ppo/eos_rate']:.0%} of the responses end: raise max_response_length or missing_eos_penalty",
        in_a_row=5,
    ),
    Sign(
        lambda m, c: m["ppo/score_length_correlation"] > 0.7,
        lambda m, c: f"reward rises with length (r = {m['ppo/score_length_correlation']:.1f}): the reward model pays for "
        "words; balance lengths in stage 2's pairs",
        in_a_row=3,
    ),
    Sign(
        lambda m, c: m["ppo/explained_variance"] < 0,
        lambda m, c: f"explained variance {m['ppo/explained_variance']:.2f} < 0: critic not ready; raise "
        "critic_learning_rate or critic_warmup_iterations",
        in_a_row=10,
    ),
    Sign(
        lambda m, c: m["ppo/kl"] > (2 * c.adaptive_kl_target if c.adaptive_kl_target else c.kl_warning),
        lambda m, c: f"KL {m['ppo/kl']:.1f} nats is above {'twice its target' if c.adaptive_kl_target else 'kl_warning'} "
        "for 5 iterations: the actor leaves the reference; raise kl_coef or lower actor_learning_rate",
        in_a_row=5,
    ),
    Sign(
        lambda m, c: m.get("ppo/clipfrac", 0) > 0.4,
        lambda m, c: f"{m['ppo/clipfrac']:.0%} of the tokens are clipped: steps are too large; lower actor_learning_rate or "
        "ppo_epochs",
        in_a_row=3,
    ),
    Sign(
        lambda m, c: m["ppo/scores_std"] < 1e-4,
        lambda m, c: "all responses get the same score: there is nothing to learn from",
    ),
    Sign(
        lambda m, c: m["ppo/entropy"] < 0.05,
        lambda m, c: f"entropy {m['ppo/entropy']:.3f} nats: the actor has settled on one answer; raise entropy_coef or kl_coef",
        in_a_row=5,
    ),
    Sign(
        lambda m, c: m["ppo/sampler_mismatch"] > 0.01,
        lambda m, c: f"sampler and training weights disagree by {m['ppo/sampler_mismatch']:.3f} in probability (wanted: "
        "below 0.01): use a higher inference precision",
    ),
)  # fmt: skip


@dataclass
class Diagnosis:
    """Counts how long each sign has shown; names one when it has lasted, and again only after a while."""

    config: PPOConfig
    lasting: dict[int, int] = field(default_factory=dict)

    def look(self, metrics: Metrics) -> list[str]:
        """The lines for this iteration's metrics."""
        lines = []
        for index, sign in enumerate(SIGNS):
            self.lasting[index] = self.lasting.get(index, 0) + 1 if sign.shows(metrics, self.config) else 0
            since = self.lasting[index] - sign.in_a_row
            if since >= 0 and since % REPEAT == 0:
                lines.append(sign.says(metrics, self.config))
        return lines
