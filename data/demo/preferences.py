"""Preference pairs: two answers to one question, compared by the gold score; some labels are wrong. And demonstrations,
of the quality that people's answers have."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from data.demo import phrases
from data.demo.dialogues import Habits, answer, ask, core, dress
from data.demo.facts import Fact, held_out_questions, training_questions
from data.demo.gold import gold_score

LABEL_NOISE = 0.1
"""Share of pairs with a wrong label: chosen and rejected are swapped."""
TIE = 0.1
"""Answers whose gold scores are not farther apart than this are not compared."""
PER_PROMPT = 2
"""Pairs and demonstrations of each training question in each frame."""

# Shares of pairs that differ in one thing only: in what they say, or in how they say it. The rest differ in both.
SAME_MANNER, SAME_CORE = 0.6, 0.25
PLAIN = 0.6
"""Share of the pairs of the same manner that have none: from these the reward model soon learns what was asked."""
OFF_TOPIC = 0.8
"""Share of the pairs of the same manner whose worse answer is off the topic; in the others it is evasive."""
GOOD = Habits(off_topic=0, evasive=0, wrong=0)


def preferences(random: Random, *, noise: float = LABEL_NOISE) -> Iterator[dict[str, str]]:
    """Pairs for every training question in every frame; rows of prompt, chosen and rejected, in a random order."""
    for fact, prompt in _prompts(random):
        kind = random.random()
        while True:
            first, second = _two_answers(fact, random, kind)
            difference = gold_score(prompt, first) - gold_score(prompt, second)
            if abs(difference) > TIE:
                break
        if (difference < 0) != (random.random() < noise):
            first, second = second, first
        yield {"prompt": prompt, "chosen": first, "rejected": second}


def demonstrations(random: Random) -> Iterator[dict[str, str]]:
    """People's answers to every training question in every frame, good and bad; rows of prompt and response."""
    for fact, prompt in _prompts(random):
        yield {"prompt": prompt, "response": answer(fact, random)}


def held_out_prompts(random: Random) -> Iterator[dict[str, str]]:
    """Every fact twice, in the one phrasing that no stage is trained on; all once before any comes again."""
    questions = list(held_out_questions())
    for _ in range(2):
        random.shuffle(questions)
        for fact, question in questions:
            yield {"prompt": ask(fact, question, random)}


def _prompts(random: Random) -> list[tuple[Fact, str]]:
    prompts = [
        (fact, ask(fact, question, random, frame=frame))
        for fact, question in training_questions()
        for frame in phrases.FRAMES
        for _ in range(PER_PROMPT)
    ]
    random.shuffle(prompts)
    return prompts


def _two_answers(fact: Fact, random: Random, kind: float) -> tuple[str, str]:
    manners = [random.random(), random.random()]
    if kind < SAME_MANNER:
        off_topic = random.random() < OFF_TOPIC
        cores = [core(fact, random, GOOD), core(fact, random, Habits(off_topic=off_topic, evasive=not off_topic))]
        random.shuffle(cores)
        if random.random() < PLAIN:
            return cores[0], cores[1]
        manners[1] = manners[0]
    else:
        cores = [core(fact, random), core(fact, random)]
        if kind < SAME_MANNER + SAME_CORE:
            cores[1] = cores[0]
    first, second = (dress(core, Random(manner)) for core, manner in zip(cores, manners, strict=True))
    return first, second
