"""PPO in a loop of your own, built from the functions of stage 3. Copy this file and change it as you like.

python -m scripts.custom_loop MODEL PROMPTS.txt OUTPUT: in this example the actor learns to use many different words.
PROMPTS.txt has one prompt in each line. With several ranks, each must get the same prompts and call every function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf import console
from rlhf.models.export import export
from rlhf.template import Message
from rlhf.training import distributed
from step3_ppo.batches import rows_of_texts
from step3_ppo.config import PPOConfig
from step3_ppo.experience import make_experience, rollout_metrics
from step3_ppo.main import sampling_of
from step3_ppo.optimise import optimise, steps_per_iteration
from step3_ppo.passes import ForwardPasses
from step3_ppo.rewards.function import RewardFunction
from step3_ppo.roles import Roles, build_roles
from step3_ppo.rollout import generate


def words(completions: list[str], **_: object) -> list[float]:
    """The number of different words. A reward may also run the answer's code, or ask another program."""
    return [len(set(text.lower().split())) / 10 for text in completions]


def train(config: PPOConfig, prompts: Sequence[str], own: Callable[[list[Message], str], float] | None = None) -> Roles:
    """Run `config.iterations` iterations with the rewards of `config.reward`, or with a function of a prompt and a
    response in this process; the trained actor is in `roles.actor`."""
    distributed.init(config.seed)
    iterations, size = config.iterations or 1, config.rollout_batch_size
    reward, steps = RewardFunction(own) if own else None, iterations * steps_per_iteration(config)
    roles = build_roles(config, optimizer_steps=steps, reward=reward)
    passes, template, done = ForwardPasses(roles, config), roles.actor.template, 0
    sampling = sampling_of(config, roles.actor)
    for iteration in range(iterations):
        texts = [prompts[(iteration * size + row) % len(prompts)] for row in range(size)]
        asked = rows_of_texts(texts, template)
        m = passes.measure(generate(roles.actor.hybrid, asked, sampling, config, iteration=iteration), iteration)
        scores_B = m.scores_B.clamp(-config.score_clip, config.score_clip)
        experience = make_experience(m, scores_B, config, kl_coef=config.kl_coef)
        done += optimise(experience, passes, config, iteration=iteration, steps_before=done).steps
        found = rollout_metrics(experience)
        console.say(f"iteration {iteration + 1}: score {found['ppo/scores_mean']:.3f}, KL {found['ppo/kl']:.2f}")
    return roles


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    rewards = [f"{__file__}:words", "check:repetition:0.5"]
    settings = PPOConfig(actor_model=sys.argv[1], reward=rewards, iterations=100, actor_learning_rate=1e-5)
    actor = train(settings, Path(sys.argv[2]).read_text(encoding="utf-8").strip("\n").split("\n")).actor
    export(actor.engine.module.lm, Path(sys.argv[3]), tokenizer=actor.tokenizer)
    distributed.shutdown(0)
