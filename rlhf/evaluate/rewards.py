"""The rewards of stage 3 as a judge of an evaluation: their weighted sum, and the score of each as a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.errors import ModelError, nearest
from rlhf.evaluate.judges import Asked, Judge, Response, Scores, reward_model_judge
from rlhf.models.names import check_model, template_problems
from rlhf.rewards import functions
from rlhf.rewards.names import TRAINED, Reward
from rlhf.template import Template


def judge_problems(rewards: Sequence[Reward], *, seconds: float, trust_remote_code: bool = False) -> list[str]:
    """A line for each problem of the rewards' files, functions and models."""
    found = functions.look_at(rewards, seconds=seconds)[1]
    for reward in rewards:
        if reward.kind == TRAINED:
            found.append(f"{reward.flag}: here no stage 2 has made one; write model: and its folder")
        elif reward.kind == "model":
            wrong = check_model(reward.target, flag="--reward", kind="scorer", trust_remote_code=trust_remote_code)
            wrong += template_problems(reward.target, flag="--reward")
            found += [line.replace(f"--reward {reward.target}", reward.flag, 1) for line in wrong]
    return found


def check_readable(
    asked: Sequence[Asked], rewards: Sequence[Reward], reward_model: str, *, file: Any, trust_remote_code: bool = False
) -> None:
    """Raises ModelError for the first prompt that the chat template of a reward model cannot render."""
    from rlhf.models.loading import load_tokenizer

    judges = {reward.flag: reward.target for reward in rewards if reward.kind == "model"}
    judges |= {"--reward-model": reward_model} if reward_model else {}
    for flag, name in judges.items():
        template = Template(load_tokenizer(name, trust_remote_code=trust_remote_code))
        for each in asked:
            try:
                template.render(each.messages)
            except ModelError as error:
                raise ModelError(f"{flag}: {name} cannot read the prompt of {file}, row {each.row}: {error}") from None


def missing_columns(
    rewards: Sequence[Reward], asked: Sequence[Asked], *, file: Any, seconds: float
) -> dict[str, list[str]]:
    """For each reward, as it was written, the lines for columns that it reads and that no prompt has."""
    there = sorted({column for a in asked for column in a.columns})
    found = functions.look_at(rewards, seconds=seconds)[0]
    return {
        reward.spec: [
            f"{reward.flag} reads the column '{column}', which {file} does not have{nearest(column, there)} "
            f"(it has {', '.join(there) or 'no other column'})"
            for column in found[reward.name].needs
            if column not in there
        ]
        for reward in rewards
        if reward.name in found
    }


def rewards_judge(
    rewards: Sequence[Reward], *, seconds: float, dtype: str, batch_size: int, trust_remote_code: bool = False
) -> Judge:
    """The judge that scores answers as stage 3 does, without its clipping: models as `reward_model_judge`, functions as
    they are. Where a function returns None it counts 0. Raises DataError and ModelError."""
    called = functions.Functions(rewards, seconds=seconds)
    models = {
        reward.name: reward_model_judge(
            reward.target, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, is_any=True
        )
        for reward in rewards
        if not reward.is_called
    }

    def judge(asked: Sequence[Asked], responses: Sequence[Response]) -> Scores:
        rows = [
            functions.Asked(a.messages, r.text, list(r.ids or ()), a.is_text, a.columns, f"row {a.row}")
            for a, r in zip(asked, responses, strict=True)
        ]
        parts: Mapping[str, Sequence[float | None]] = {
            reward.name: models[reward.name](asked, responses).values
            if reward.name in models
            else called.scores(reward.name, rows)
            for reward in rewards
        }
        totals = [sum(reward.weight * (parts[reward.name][i] or 0.0) for reward in rewards) for i in range(len(rows))]
        return Scores(totals, {name: list(values) for name, values in parts.items()})

    return judge
