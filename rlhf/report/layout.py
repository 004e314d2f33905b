"""What the report draws of each stage, and in which words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """Which metrics are drawn together; a value range that is always shown; what the reader should know."""

    title: str
    names: tuple[str, ...]
    note: str = ""
    floor: float | None = None
    ceiling: float | None = None
    noisy: bool = True


@dataclass(frozen=True)
class StageLayout:
    """How a stage is shown: charts, and metrics of its result with the words for them."""

    title: str
    unit: str  # of the charts' horizontal axis
    charts: tuple[Chart, ...]
    results: dict[str, str]


STAGES = {
    "step1_sft": StageLayout(
        "Stage 1: supervised fine-tuning",
        "optimiser step",
        (
            Chart("Loss", ("sft/loss",), "nats per counted token"),
            Chart("Held-out perplexity", ("sft/perplexity",), "exp of the mean loss on rows not trained on"),
            Chart("Gradient norm", ("sft/grad_norm",), "before clipping", floor=0),
            Chart("Learning rate", ("sft/learning_rate",), floor=0, noisy=False),
        ),
        {"sft/perplexity_before": "perplexity before", "sft/perplexity": "perplexity after", "sft/steps": "steps"},
    ),
    "step2_reward": StageLayout(
        "Stage 2: reward model",
        "optimiser step",
        (
            Chart("Loss", ("reward/loss", "reward/eval_loss"), "nats per pair; 0.693 is a coin"),
            Chart(
                "Accuracy",
                ("reward/accuracy", "reward/train_accuracy"),
                "pairs in the right order, held out and trained on",
                0.5,
                1,
            ),
            Chart("Margin", ("reward/margin",), "score of chosen less rejected, held-out pairs"),
            Chart(
                "Length correlation", ("reward/length_correlation",), "of score and length, held-out responses", -1, 1
            ),
            Chart("Calibration error", ("reward/calibration_error",), "expected, 10 bins, held-out pairs", floor=0),
            Chart("Gradient norm", ("reward/grad_norm",), "before clipping", floor=0),
        ),
        {
            "reward/accuracy_before": "accuracy before",
            "reward/accuracy": "held-out accuracy",
            "reward/margin": "margin",
            "reward/steps": "steps",
        },
    ),
    "step3_ppo": StageLayout(
        "Stage 3: PPO",
        "iteration",
        (
            Chart("Score", ("ppo/scores_mean",), "mean of the reward model's scores of a rollout"),
            Chart("KL to the reference", ("ppo/kl",), "nats per sequence", floor=0),
            Chart("Response length", ("ppo/response_length",), "tokens", floor=0),
            Chart("Ended by the end token", ("ppo/eos_rate",), "share of responses", 0, 1),
            Chart(
                "Explained variance", ("ppo/explained_variance",), "of the returns, by the critic; 1 is perfect", 0, 1
            ),
            Chart("Entropy", ("ppo/entropy",), "nats per token", floor=0),
            Chart("Actor loss", ("ppo/actor_loss",)),
            Chart("Critic loss", ("ppo/critic_loss",), floor=0),
            Chart("Pretraining loss", ("ppo/ptx_loss",), "nats per token of the pretraining mix"),
            Chart("Policy change", ("ppo/approx_kl", "ppo/clipfrac"), "KL in nats per token; share that is clipped", 0),
            Chart("KL coefficient", ("ppo/kl_coef",), floor=0, noisy=False),
            Chart("Gradient norms", ("ppo/grad_norm_actor", "ppo/grad_norm_critic"), "before clipping", floor=0),
            Chart("Seconds", ("time/generate", "time/score", "time/train", "time/flip"), "of an iteration", floor=0),
            Chart("Tokens per second", ("perf/tokens_per_second",), "generated, over the whole iteration", floor=0),
        ),
        {
            "ppo/scores_mean_first": "first score",
            "ppo/scores_mean": "last score",
            "ppo/kl": "KL",
            "ppo/response_length": "length",
            "ppo/eos_rate": "ended",
        },
    ),
}
