"""What a model is worth beside the one that it started from: gold score and its parts, KL, length, on the same prompts.

For `scripts.compare_methods`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.demo.gold import gold_parts

AT_ONCE = 64  # sequences of a forward pass
SHARES = {"right": "correct", "off topic": "on topic", "courteous": "courteous"}  # name → part of the gold score


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, each answered `answers` times in the way that a recipe's `evaluate:` says."""

    file: Path
    answers: int
    settings: Mapping[str, Any]


def figures_of(model: Path, start: Path, prompts: Prompts) -> dict[str, Any]:
    """Means over all answers of `model`; "gold" has the mean of each prompt. KL is that to `start`, estimated on the
    answers: the mean of log π − log π_start summed over an answer, end token included, in nats."""
    from rlhf.evaluate.evaluation import EvaluateConfig, answer_all, read_prompts
    from rlhf.generation.speaker import load_speaker

    asked = read_prompts(prompts.file)
    speaker = load_speaker(str(model), label=model.parent.name)
    after, before = LogProbs(model), LogProbs(start)
    end = speaker.template.end_token_id
    parts: list[list[dict[str, float]]] = [[] for _ in asked]
    said, lengths = [], []
    chosen = {name: prompts.settings[name] for name in ("temperature", "max_new_tokens") if name in prompts.settings}
    for number in range(prompts.answers):
        config = EvaluateConfig(prompts=prompts.file, seed=number, **chosen)
        for row, response in enumerate(answer_all(speaker, asked, config)):
            parts[row].append(gold_parts(asked[row].messages[-1]["content"], response.text))
            ids = [*(response.ids or []), *([end] if response.ended else [])]
            prompt_ids = speaker.template.prompt_ids(asked[row].messages)
            said.append((prompt_ids, ids))
            lengths.append(response.length)
    kl = [new - old for new, old in zip(after(said), before(said), strict=True)]
    means = {name: mean([answer[part] for row in parts for answer in row]) for name, part in SHARES.items()}
    means["off topic"] = 1 - means["off topic"]
    gold = [mean([answer["score"] for answer in row]) for row in parts]
    return {"gold": gold, **means, "kl": mean(kl), "length": mean(lengths)}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class LogProbs:
    """Summed log-probabilities of responses under a model."""

    def __init__(self, model: Path) -> None:
        from rlhf.models.causal_model import CausalModel
        from rlhf.models.loading import Loading, load_causal_lm, load_tokenizer

        self.tokenizer = load_tokenizer(str(model))
        self._scorer = CausalModel(load_causal_lm(Loading(str(model), self.tokenizer)))

    def __call__(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Of the response of each (prompt, response); the first token of a sequence does not count."""
        import torch

        from step2_dpo.batches import collate, sums_of

        found: list[float] = []
        for start in range(0, len(sequences), AT_ONCE):
            part = sequences[start : start + AT_ONCE]
            batch = collate(part, range(len(part)), pad=self.tokenizer.pad_token_id or 0)
            with torch.no_grad():
                found += sums_of(self._scorer(batch.input_ids_ST, batch.count_ST).logprobs_N, batch).tolist()
        return found


def mean_lengths(model: Path, pairs: Path) -> tuple[float, float]:
    """Mean tokens of the prompts and of the responses, end tokens included, in a file of pairs."""
    from rlhf.json_lines import read_json_lines
    from rlhf.models.loading import load_tokenizer
    from rlhf.template import Template

    template = Template(load_tokenizer(str(model)))
    rows = [line.value() for line in read_json_lines(pairs)]
    prompts = template.encode([template.prompt_text([{"role": "user", "content": row["prompt"]}]) for row in rows])
    texts = [template.response_text(text) for row in rows for text in _both(row)]
    responses = template.encode(texts, responses=True)
    return mean([len(ids) for ids in prompts]), mean([len(ids) + 1 for ids in responses])


def _both(row: Mapping[str, str]) -> Iterator[str]:
    yield from (row["chosen"], row["rejected"])
