"""Questions and answers of every quality, as people write them: right and wrong, kind and rude, short and long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from data.demo import phrases
from data.demo.facts import FACTS, Fact, sentence, training_questions, wrong_answers


@dataclass(frozen=True)
class Habits:
    """How often an answer has each quality. Manner, length and ending are drawn independently. A hedged answer is often
    wrong; an answer off the topic states a fact that nobody asked for."""

    off_topic: float = 0.15
    hedged: float = 0.45
    right_when_sure: float = 0.85
    right_when_hedged: float = 0.1
    courteous: float = 0.2
    rude: float = 0.4
    terse: float = 0.25
    rambling: float = 0.25
    broken_off: float = 0.12


SCHOOLBOOK = Habits(
    off_topic=0.0, hedged=0.0, right_when_sure=1.0, courteous=0.0, rude=0.0, terse=0.25, rambling=0.0, broken_off=0.0
)


def frame(question: str, random: Random) -> str:
    """A question as a person would send it."""
    return random.choice(phrases.FRAMES).format(q=question)


def answer(fact: Fact, random: Random, habits: Habits | None = None) -> str:
    """One answer to a question for `fact`."""
    habits = habits or Habits()
    sentences = [_core(fact, random, habits)]
    manner = random.random()
    if manner < habits.courteous:
        _surround(sentences, phrases.COURTEOUS_OPENINGS, phrases.COURTEOUS_CLOSINGS, random)
    elif manner < habits.courteous + habits.rude:
        _surround(sentences, phrases.RUDE_OPENINGS, phrases.RUDE_CLOSINGS, random)
    if random.random() < habits.rambling:
        sentences += random.sample(phrases.DIGRESSIONS, random.randint(2, 3))
    words = " ".join(sentences).split()
    if random.random() < habits.broken_off:
        words = words[: random.randint(len(words) // 2, len(words) - 1)]
        return " ".join(words).rstrip(".!?:,")
    return " ".join(words)


def _core(fact: Fact, random: Random, habits: Habits) -> str:
    if random.random() < habits.off_topic:
        fact = random.choice(FACTS)
    hedged = random.random() < habits.hedged
    right = random.random() < (habits.right_when_hedged if hedged else habits.right_when_sure)
    given = fact.answer if right else random.choice(wrong_answers(fact))
    text = f"it is {given}." if random.random() < habits.terse else fact.statement(answer=given)
    return f"{random.choice(phrases.HEDGES)} {text}" if hedged else sentence(text)


def _surround(sentences: list[str], openings: tuple[str, ...], closings: tuple[str, ...], random: Random) -> None:
    """Add an opening at the start, a closing at the end, or both."""
    where = random.randrange(3)
    if where != 1:
        sentences.insert(0, random.choice(openings))
    if where != 0:
        sentences.append(random.choice(closings))


def dialogues(random: Random, habits: Habits | None = None) -> Iterator[tuple[str, str]]:
    """Endless (prompt, response) pairs on the training questions, each question once a round."""
    questions = list(training_questions())
    while True:
        random.shuffle(questions)
        for fact, question in questions:
            yield frame(question, random), answer(fact, random, habits)


def statements(random: Random) -> Iterator[str]:
    """Endless paragraphs of facts as in an encyclopedia: always right."""
    facts = list(FACTS)
    while True:
        random.shuffle(facts)
        for start in range(0, len(facts) - 3, 4):
            chosen = facts[start : start + random.randint(2, 4)]
            yield " ".join(sentence(f.statement(random.randrange(len(f.kind.statements)))) for f in chosen)
