"""The gold score: what people really want in the demo. No model sees it; preferences are drawn from it, with noise.

It has four parts: whether the answer is right, courteous, brief and complete. It depends on the text alone, not on a
model, so it can judge any answer to a question of the demo.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data.demo.facts import Fact, fact_of
from data.demo.phrases import COURTEOUS, RUDE

WEIGHTS = {"correct": 0.4, "courteous": 0.4, "brief": 0.1, "ends": 0.1}
PLAIN_COURTESY = 0.4  # neither courteous nor rude
BRIEF_WORDS, LONG_WORDS = 20, 40  # full marks up to the first, none from the second


@dataclass(frozen=True)
class Judgement:
    """The parts of the gold score, each in 0..1."""

    correct: float
    courteous: float
    brief: float
    ends: float

    @property
    def score(self) -> float:
        return sum(weight * getattr(self, part) for part, weight in WEIGHTS.items())


def gold_score(prompt: str, response: str) -> float:
    """How good a response is, in 0..1; an empty one has 0."""
    return judge(prompt, response).score


def judge(prompt: str, response: str) -> Judgement:
    """The parts of `gold_score`. If a prompt asks for none of the demo's facts, no answer is correct."""
    response = response.strip()
    if not response:
        return Judgement(0.0, 0.0, 0.0, 0.0)
    fact = fact_of(prompt)
    words = len(response.split())
    return Judgement(
        correct=float(fact is not None and stated_answers(fact, response) == {fact.answer}),
        courteous=_courtesy(response),
        brief=min(1.0, max(0.0, (LONG_WORDS - words) / (LONG_WORDS - BRIEF_WORDS))),
        ends=float(response[-1] in ".!?" and "Human:" not in response),
    )


def stated_answers(fact: Fact, response: str) -> set[str]:
    """The answers of the fact's kind that the response names; a response that names two is not an answer."""
    rest = re.sub(_whole(fact.subject), " ", response, flags=re.IGNORECASE)
    if fact.kind.name == "sum":
        return set(re.findall(r"\d+", rest))
    return {answer for answer in set(fact.kind.answers.values()) if re.search(_whole(answer), rest)}


def _whole(words: str) -> str:
    return rf"(?<!\w){re.escape(words)}(?!\w)"


def _courtesy(response: str) -> float:
    if any(phrase in response for phrase in RUDE):
        return 0.0
    return 1.0 if any(phrase in response for phrase in COURTEOUS) else PLAIN_COURTESY
