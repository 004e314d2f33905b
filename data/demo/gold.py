"""The gold score: what people really want in the demo. No model sees it; preferences are drawn from it, with noise.

Its parts: whether the answer is right, on the topic, courteous, brief and complete. Manners count only where the answer
is right: a polite answer that is wrong, that says nothing, or that answers another question, helps nobody and has 0.
The score depends on the text alone, not on a model, so it can judge any answer to a question of the demo.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from data.demo.facts import Fact, fact_of, kinds_stated
from data.demo.phrases import COURTEOUS, RUDE

RIGHT = 0.5  # of a right answer, whatever its manner
MANNERS = {"courteous": 0.3, "brief": 0.1, "ends": 0.1}  # more for a right answer
PLAIN_COURTESY = 0.4  # neither courteous nor rude
BRIEF_WORDS, LONG_WORDS = 20, 40  # full marks up to the first, none from the second


@dataclass(frozen=True)
class Judgement:
    """The parts of the gold score, each in 0..1."""

    correct: float
    on_topic: float
    courteous: float
    brief: float
    ends: float

    @property
    def score(self) -> float:
        return self.correct * (RIGHT + sum(weight * getattr(self, part) for part, weight in MANNERS.items()))


def gold_score(prompt: str, response: str) -> float:
    """How good a response is, in 0..1; one that does not answer, or wrongly, has 0."""
    return judge(prompt, response).score


def gold_parts(prompt: str, response: str) -> dict[str, float]:
    """The gold score and its parts, as `rlhf.evaluate` shows them."""
    judged = judge(prompt, response)
    parts = {name.replace("_", " "): value for name, value in asdict(judged).items()}
    return {"score": judged.score, **parts}


def judge(prompt: str, response: str) -> Judgement:
    """The parts of `gold_score`. An answer is on the topic if it states no fact of another kind than the prompt asks
    for; if a prompt asks for none of the demo's facts, no answer is correct or on the topic."""
    response = response.strip()
    if not response:
        return Judgement(0.0, 0.0, 0.0, 0.0, 0.0)
    fact = fact_of(prompt)
    on_topic = fact is not None and kinds_stated(response) <= {fact.kind}
    words = len(response.split())
    return Judgement(
        correct=float(fact is not None and on_topic and stated_answers(fact, response) == {fact.answer}),
        on_topic=float(on_topic),
        courteous=_courtesy(response),
        brief=min(1.0, max(0.0, (LONG_WORDS - words) / (LONG_WORDS - BRIEF_WORDS))),
        ends=float(response[-1] in ".!?" and "Human:" not in response),
    )


def stated_answers(fact: Fact, response: str) -> set[str]:
    """The answers of the fact's kind that the response names; a response that names two is not an answer."""
    return {answer for answer in fact.kind.answers if re.search(rf"(?<!\w){answer}(?!\w)", response)}


def _courtesy(response: str) -> float:
    if any(phrase in response for phrase in RUDE):
        return 0.0
    return 1.0 if any(phrase in response for phrase in COURTEOUS) else PLAIN_COURTESY
