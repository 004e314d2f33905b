"""python -m rlhf.evaluate: several models answer the same prompts, and their answers are scored side by side.

Imports torch only when models answer.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import click

from rlhf import console
from rlhf.command import Command
from rlhf.config import build, given, groups_of, options, setting
from rlhf.errors import EXIT_DONE, ConfigError, DataError, nearest
from rlhf.evaluate import comparison
from rlhf.evaluate.judges import Asked, Judge, Response, Scores, reward_model_judge, scorer_judge, scorer_problems
from rlhf.evaluate.rewards import check_readable, judge_problems, missing_columns, rewards_judge
from rlhf.file_signs import what_it_is
from rlhf.files import file_problems, is_text, write_json
from rlhf.generation.speaker import Speaker, load_speaker
from rlhf.generation.speaker import problems as speaker_problems
from rlhf.generation.streaming import cut_at
from rlhf.hardware import ONE_RANK, Machine
from rlhf.json_lines import JSONLine, LineError, read_json_lines
from rlhf.models.names import check_model
from rlhf.rewards.settings import RewardSettings
from rlhf.stage_config import Dtype


class EvaluateConfig(RewardSettings):
    """Which models answer which prompts, how, and what scores them."""

    help_groups: ClassVar = {
        "Models": ("model", "dtype", "trust_remote_code"),
        "Prompts": ("prompts", "prompt_column", "max_prompts"),
        "Scores": ("scorer", "reward_model"),
        "Rewards": (),
        "Result": ("output", "samples"),
        "Answers": (
            *("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop_at_next_turn"),
            "batch_size",
        ),
    }

    model: list[str] = setting(
        [], "LABEL=MODEL, a folder, a hub name or an alias; the others are compared with the first; repeatable"
    )
    prompts: Path | None = setting(None, ".jsonl file of prompts, each a text or a list of {role, content}")
    prompt_column: str = setting("prompt", "column of the file that holds the prompts")
    max_prompts: int | None = setting(None, "largest number of prompts; default: all of the file", ge=1)
    scorer: str = setting(
        "",
        "function of prompt and response, as package.module:function; it returns a score, or score and parts",
    )
    reward_model: str = setting("", "trained reward model that scores the responses")
    output: Path | None = setting(None, "JSON file that the result is written to")
    samples: int = setting(6, "number of prompts whose responses are shown", ge=0)
    temperature: float = setting(0.0, "temperature of the sampling; 0: always the most likely token", ge=0)
    top_p: float = setting(1.0, "probability of the smallest set of tokens to sample from; 1: all tokens", gt=0, le=1)
    top_k: int = setting(0, "number of most likely tokens to sample from; 0: all tokens", ge=0)
    max_new_tokens: int = setting(256, "longest response, in tokens, end token included", ge=1)
    stop_at_next_turn: bool = setting(False, "response cut where the model begins the user's next turn, as in chat")
    seed: int = setting(0, "seed of the sampling", ge=0)
    batch_size: int = setting(32, "prompts answered at a time; changes memory, not results", ge=1)
    dtype: Dtype = setting("auto", "number format of the weights; auto: bf16 on GPUs that compute in it, else fp32")
    trust_remote_code: bool = setting(False, "permission to run code that comes with a model")

    def named_models(self) -> dict[str, str]:
        """Label → model."""
        named = {}
        for item in self.model:
            label, equals, name = item.partition("=")
            named[label] = name if equals else item
        return named

    def problems(self, machine: Machine = ONE_RANK) -> list[str]:
        """What can be found without torch: models, prompts, scorer."""
        found = [] if self.model else ["--model is needed: LABEL=MODEL, once for each model"]
        if len(self.named_models()) != len(self.model):
            found.append("--model: two models have the same label; write --model LABEL=MODEL with a label for each")
        for label, name in self.named_models().items():
            found += speaker_problems(name, flag=f"--model {label}:", trust_remote_code=self.trust_remote_code)
        if self.prompts is None:
            found.append("--prompts is needed: a .jsonl file")
        else:
            try:
                read_prompts(self.prompts, column=self.prompt_column, limit=self.max_prompts)
            except DataError as error:
                found += error.problems
        if self.output is not None:
            found += file_problems(self.output, flag="--output")
        if self.scorer:
            found += scorer_problems(self.scorer)
        found += self.reward_problems()
        found += judge_problems(self.rewards, seconds=self.reward_timeout, trust_remote_code=self.trust_remote_code)
        found += [line for lines in self.missing_columns().values() for line in lines]
        if self.reward_model:
            found += check_model(
                self.reward_model, flag="--reward-model", kind="reward", trust_remote_code=self.trust_remote_code
            )
        return found

    def missing_columns(self) -> dict[str, list[str]]:
        """For each reward, as it was written, what it lacks in the file of prompts."""
        if self.prompts is None or not self.rewards:
            return {}
        try:
            asked = read_prompts(self.prompts, column=self.prompt_column, limit=self.max_prompts)
        except DataError:
            return {}
        return missing_columns(self.rewards, asked, file=self.prompts, seconds=self.reward_timeout)


def read_prompts(path: Path, *, column: str = "prompt", limit: int | None = None) -> list[Asked]:
    """The prompts of a JSONL file; the first `limit`. Raises DataError naming file and row."""
    asked: list[Asked] = []
    if other := what_it_is(path):
        raise DataError(f"{path} {other}")
    try:
        for line in read_json_lines(path):
            if len(asked) == limit:
                break
            if not line.blank:
                asked.append(_asked(line, path, column))
    except FileNotFoundError:
        raise DataError(f"prompts={path}: no such file") from None
    except OSError as error:
        raise DataError(f"prompts={path} cannot be read: {error.strerror or error}") from None
    if not asked:
        raise DataError(f"{path} has no prompts")
    return asked


def _asked(line: JSONLine, path: Path, column: str) -> Asked:
    """A line's prompt as messages, and its other columns. Raises DataError naming file and row."""
    try:
        row = line.value()
    except LineError as error:
        raise DataError(f"{path}, line {line.number} {error}") from None
    if not isinstance(row, dict) or column not in row:
        hint = nearest(column, row) if isinstance(row, dict) else ""
        hint = hint or "; --prompt-column names another"
        raise DataError(f"{path}, row {line.number} has no column '{column}'{hint}")
    value: Any = row[column]
    as_text = isinstance(value, str)
    if as_text:
        value = [{"role": "user", "content": value}]
    if not _is_conversation(value):
        raise DataError(f"{path}, row {line.number}: '{column}' is neither text nor messages that end with the user's")
    for message in value:
        if not is_text(message["content"]):
            raise DataError(
                f"{path}, row {line.number}: '{column}' holds half of a surrogate pair, which is no character"
            )
    return Asked(line.number, value, as_text, {name: each for name, each in row.items() if name != column})


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in value)
        and value[-1]["role"] in ("user", "tool")
    )


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Let every model answer every prompt, score the answers, and return what is written to the JSON file.

    Models are loaded one after the other. Raises UserError.
    """
    problems = config.problems()
    if problems:
        raise ConfigError(*problems)
    assert config.prompts is not None
    asked = read_prompts(config.prompts, column=config.prompt_column, limit=config.max_prompts)
    trusted = config.trust_remote_code
    check_readable(asked, config.rewards, config.reward_model, file=config.prompts, trust_remote_code=trusted)
    responses: dict[str, list[Response]] = {}
    seconds: dict[str, float] = {}
    for label, name in config.named_models().items():
        speaker = load_speaker(name, label=label, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        began = time.monotonic()
        responses[label] = answer_all(speaker, asked, config)
        seconds[label] = time.monotonic() - began
        del speaker
        gc.collect()  # makes room in memory for the next model
    scores = {
        kind: _comparable({label: judge(asked, r) for label, r in responses.items()})
        for kind, judge in _judges(config).items()
    }
    return {
        "prompts": {"file": str(config.prompts), "count": len(asked), "sha256": _fingerprint(asked)},
        "settings": config.model_dump(mode="json", exclude={"model", "output"}),
        "models": [
            {
                "label": label,
                "model": name,
                "length": comparison.mean_and_error([r.length for r in responses[label]]),
                "end_rate": sum(r.ended for r in responses[label]) / len(asked),
                "seconds": seconds[label],
                **{kind: _compared(table[label], next(iter(table.values()))) for kind, table in scores.items()},
            }
            for label, name in config.named_models().items()
        ],
        "samples": [_sample(asked[i], i, responses, scores) for i in comparison.spread(len(asked), config.samples)],
    }


def answer_all(speaker: Speaker, asked: Sequence[Asked], config: EvaluateConfig) -> list[Response]:
    """The speaker's responses, in the order of the prompts. Longest prompts are answered first, in batches."""
    from rlhf.generation.drawing import Sampling

    stops = speaker.stops
    sampling = Sampling(
        config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop_token_ids=stops.token_ids if config.stop_at_next_turn else stops.end_ids,
    )
    prompts = [speaker.template.prompt_ids(a.messages) for a in asked]
    longest = max(range(len(asked)), key=lambda i: len(prompts[i]))
    if speaker.limit is not None and len(prompts[longest]) + config.max_new_tokens > speaker.limit:
        raise DataError(
            f"{config.prompts}, row {asked[longest].row}: the prompt's {len(prompts[longest])} tokens and "
            f"max_new_tokens={config.max_new_tokens} exceed the {speaker.limit} tokens that {speaker.label} can hold; "
            "lower --max-new-tokens or leave the row out"
        )
    order = sorted(range(len(asked)), key=lambda i: -len(prompts[i]))
    responses: dict[int, Response] = {}
    with console.progress(f"{speaker.label} answers", total=len(asked), unit="prompt") as bar:
        for begin in range(0, len(order), config.batch_size):
            rows = order[begin : begin + config.batch_size]
            # random numbers depend on the prompt's own number, so the batch does not matter
            drawn = speaker.sampler.generate([prompts[i] for i in rows], sampling, seed=config.seed, rows=rows)
            for row, ids in zip(rows, drawn.responses(), strict=True):
                ended = bool(ids) and ids[-1] in stops.end_ids
                stopped = bool(ids) and ids[-1] in sampling.stop_token_ids
                said = ids[:-1] if stopped else ids
                text = speaker.template.text(said)
                if config.stop_at_next_turn and (cut := cut_at(text, stops.strings)) != text:
                    text, said = cut.strip(), None  # its ids are not known
                responses[row] = Response(text, len(ids), ended, said, speaker.template)
            bar.update(len(responses))
    return [responses[i] for i in range(len(asked))]


def _judges(config: EvaluateConfig) -> dict[str, Judge]:
    judges = {}
    if config.scorer:
        judges["score"] = scorer_judge(config.scorer)
    if config.reward_model:
        judges["reward_model"] = reward_model_judge(
            config.reward_model,
            dtype=config.dtype,
            batch_size=config.batch_size,
            trust_remote_code=config.trust_remote_code,
        )
    if config.reward:
        judges["reward"] = rewards_judge(
            config.rewards,
            seconds=config.reward_timeout,
            dtype=config.dtype,
            batch_size=config.batch_size,
            trust_remote_code=config.trust_remote_code,
        )
    return judges


def _comparable(table: dict[str, Scores]) -> dict[str, Scores]:
    """The scores of all models, without parts that one of them has no value of: a reward may score no row at all."""
    named = [
        {part for part, values in scores.parts.items() if any(v is not None for v in values)}
        for scores in table.values()
    ]
    shared = set.intersection(*named) if named else set()
    return {
        label: Scores(scores.values, {part: values for part, values in scores.parts.items() if part in shared})
        for label, scores in table.items()
    }


def _compared(scores: Scores, first: Scores) -> dict[str, Any]:
    """A model's scores beside the first model's; of the parts, the means."""
    means = {p: comparison.mean_and_error([v for v in vs if v is not None]) for p, vs in scores.parts.items()}
    return {**comparison.compare(scores.values, first.values), **_named_parts(means)}


def _named_parts(parts: dict[str, Any]) -> dict[str, Any]:
    return {"parts": parts} if parts else {}


def _sample(
    asked: Asked,
    index: int,
    responses: Mapping[str, Sequence[Response]],
    scores: Mapping[str, Mapping[str, Scores]],
) -> dict[str, Any]:
    answers = {
        label: {
            "text": said[index].text,
            "length": said[index].length,
            "ended": said[index].ended,
            **{kind: table[label].values[index] for kind, table in scores.items()},
            **_named_parts(
                {
                    part: values[index]
                    for table in scores.values()
                    for part, values in table[label].parts.items()
                    if values[index] is not None
                }
            ),
        }
        for label, said in responses.items()
    }
    return {"row": asked.row, "prompt": asked.text, "responses": answers}


def _fingerprint(asked: Sequence[Asked]) -> str:
    return hashlib.sha256(json.dumps([a.messages for a in asked]).encode()).hexdigest()


@click.command("python -m rlhf.evaluate", cls=Command, groups=groups_of(EvaluateConfig))
@options(EvaluateConfig)
def main(**flags: Any) -> int:
    """Let several models answer the same prompts, and compare the scores of their answers.

    \b
      python -m rlhf.evaluate --prompts FILE.jsonl \\
        --model sft=output/step1_sft/model --model ppo=output/step3_ppo/actor
    """
    config = build(EvaluateConfig, given(flags), where="")
    result = evaluate(config)
    comparison.show(result)
    if config.output:
        write_json(config.output, result)
        console.say(f"written to {config.output}")
    return EXIT_DONE
