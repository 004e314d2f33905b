"""Warnings: one line for each known failure mode whose sign is in an iteration's metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from step3_ppo.config import PPOConfig

REPEAT = 20  # iterations after which a sign that is still there is named again


@dataclass(frozen=True)
class Sign:
    """A failure mode whose sign is there now. It is named when the sign has been there for `lasting` iterations."""

    name: str
    text: str
    lasting: int = 1


def signs(metrics: Mapping[str, float], config: PPOConfig) -> Iterator[Sign]:
    """The signs in one iteration's metrics."""
    kl, eos_rate, length = metrics["ppo/kl"], metrics["ppo/eos_rate"], metrics["ppo/response_length"]
    cuts = config.top_p < 1 or config.top_k > 0
    if kl < -0.05 and cuts:
        yield Sign(
            "kl",
            f"KL {kl:.2f} < 0: sampling leaves tokens out (top_p {config.top_p:g}, top_k {config.top_k}); use 1 and 0",
        )
    elif kl < -0.5:
        yield Sign("kl", f"KL {kl:.2f} < 0: the sampler's weights differ from the trained ones")
    if eos_rate == 0 and length >= config.max_response_length:
        yield Sign(
            "limit",
            f"all responses hit the limit of {config.max_response_length} tokens: EOS is not learned (train stage 1 "
            "longer) or max_response_length is too short",
        )
    elif eos_rate < 0.5:
        yield Sign(
            "eos",
            f"only {eos_rate:.0%} of the responses end: raise max_response_length or missing_eos_penalty",
            lasting=5,
        )
    if metrics["ppo/score_length_correlation"] > 0.7:
        yield Sign(
            "length",
            f"reward rises with length (r = {metrics['ppo/score_length_correlation']:.1f}): the reward model prefers "
            "long responses; balance lengths in stage 2's pairs",
            lasting=3,
        )
    if metrics.get("ppo/explained_variance", 0.0) < 0:
        yield Sign(
            "critic",
            f"explained variance {metrics['ppo/explained_variance']:.2f} < 0: the critic is not ready; raise "
            "critic_learning_rate or critic_warmup_iterations",
            lasting=10,
        )
    limit = 2 * config.adaptive_kl_target if config.adaptive_kl_target else config.kl_warning
    if kl > limit:
        yield Sign(
            "far",
            f"KL above {limit:g} nats for 5 iterations (now {kl:.1f}): the actor moves away from the reference; raise "
            "kl_coef or lower actor_learning_rate",
            lasting=5,
        )
    if metrics.get("ppo/clipfrac", 0.0) > 0.4:
        yield Sign(
            "clip",
            f"{metrics['ppo/clipfrac']:.0%} of the {config.objective.ratio}s are clipped: steps are too large; lower "
            "actor_learning_rate or ppo_epochs",
            lasting=3,
        )
    if metrics["ppo/scores_std"] < 1e-4:
        yield Sign("scores", "all responses get the same score: there is nothing to learn from")
    elif (uniform := metrics.get("ppo/uniform_groups", 0.0) * config.group_size / config.rollout_batch_size) > 0.8:
        yield Sign(
            "groups",
            f"for {uniform:.0%} of the prompts all responses get the same score, so they teach nothing: use easier or "
            "harder prompts, or raise responses_per_prompt or temperature",
            lasting=5,
        )
    if metrics["ppo/entropy"] < 0.05:
        yield Sign(
            "entropy",
            f"entropy {metrics['ppo/entropy']:.3f} nats: the actor has settled on one answer; raise entropy_coef or "
            "kl_coef",
            lasting=5,
        )
    if metrics["ppo/sampler_mismatch"] > 0.01:
        yield Sign(
            "sampler",
            f"sampler and training weights disagree by {metrics['ppo/sampler_mismatch']:.3f} in probability (wanted: "
            "at most 0.01): use a higher inference precision",
        )


@dataclass
class Diagnosis:
    """Counts for how many iterations each sign has been there; names it after `lasting`, and again every `REPEAT`."""

    config: PPOConfig
    shown: dict[str, int] = field(default_factory=dict)

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """The lines for this iteration's metrics."""
        found = list(signs(metrics, self.config))
        self.shown = {sign.name: self.shown.get(sign.name, 0) + 1 for sign in found}
        since = {sign: self.shown[sign.name] - sign.lasting for sign in found}
        return [sign.text for sign in found if since[sign] >= 0 and since[sign] % REPEAT == 0]
