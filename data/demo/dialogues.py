"""Questions and answers of every quality, as people write them: right and wrong, kind and rude, short and long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from data.demo import phrases
from data.demo.facts import FACTS, Fact, training_questions, wrong_answers


@dataclass(frozen=True)
class Habits:
    """How often an answer has each quality. What it says, its manner, length and ending are drawn independently."""

    off_topic: float = 0.3
    """It states a fact of another kind, which nobody mentioned."""
    evasive: float = 0.25
    wrong: float = 0.03
    courteous: float = 0.2
    rude: float = 0.3
    rambling: float = 0.1
    broken_off: float = 0.06


SCHOOLBOOK = Habits(off_topic=0, evasive=0, wrong=0, courteous=0, rude=0, rambling=0, broken_off=0)


def ask(fact: Fact, question: str, random: Random, *, frame: str | None = None) -> str:
    """What a person sends who says `fact` and asks for it; `frame` stands around the question, else a random one."""
    frame = frame or random.choice(phrases.FRAMES)
    return f"{fact.said(random.randrange(len(fact.kind.said)))} {frame.format(q=question)}"


def answer(fact: Fact, random: Random, habits: Habits | None = None) -> str:
    """One answer to a question for `fact`."""
    return dress(core(fact, random, habits), random, habits)


def core(fact: Fact, random: Random, habits: Habits | None = None) -> str:
    """What an answer says: the right thing, a wrong one, nothing, or something that nobody asked for."""
    habits = habits or Habits()
    if random.random() < habits.off_topic:
        return random.choice([other for other in FACTS if other.kind is not fact.kind]).reply()
    if random.random() < habits.evasive:
        return random.choice(phrases.EVASIONS)
    wrong = random.random() < habits.wrong
    return fact.reply(answer=random.choice(wrong_answers(fact)) if wrong else None)


def dress(core: str, random: Random, habits: Habits | None = None) -> str:
    """What an answer says, in some manner and length; the same `random` gives the same manner."""
    habits = habits or Habits()
    sentences = [core]
    manner = random.random()
    if manner < habits.courteous:
        sentences.insert(0, random.choice(phrases.COURTEOUS))
    elif manner < habits.courteous + habits.rude:
        sentences.insert(0, random.choice(phrases.RUDE))
    if random.random() < habits.rambling:
        sentences += random.sample(phrases.DIGRESSIONS, random.randint(2, 3))
    words = " ".join(sentences).split()
    if random.random() < habits.broken_off:
        words = words[: random.randint(len(words) // 2, len(words) - 1)]
        return " ".join(words).rstrip(".!?:,")
    return " ".join(words)


def dialogues(random: Random, habits: Habits | None = None) -> Iterator[tuple[str, str]]:
    """Endless (prompt, response) pairs on the training questions, each question once a round."""
    questions = list(training_questions())
    while True:
        random.shuffle(questions)
        for fact, question in questions:
            yield ask(fact, question, random), answer(fact, random, habits)


def statements(random: Random) -> Iterator[str]:
    """Endless texts in which people say two things about themselves and ask nothing."""
    while True:
        yield " ".join(fact.said(random.randrange(len(fact.kind.said))) for fact in random.sample(FACTS, 2))
