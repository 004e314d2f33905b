"""Preference pairs: two answers to one question, compared by the gold score; some labels are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from data.demo import dialogues, phrases
from data.demo.facts import held_out_questions, training_questions
from data.demo.gold import gold_score

LABEL_NOISE = 0.1
"""Share of pairs with a wrong label: chosen and rejected are swapped."""
TIE = 0.15
"""Answers whose gold scores are closer than this are not compared."""


def preferences(random: Random, *, noise: float = LABEL_NOISE) -> Iterator[dict[str, str]]:
    """One pair for every training question in every frame; rows of prompt, chosen and rejected, in a random order."""
    prompts = [(fact, f.format(q=question)) for fact, question in training_questions() for f in phrases.FRAMES]
    random.shuffle(prompts)
    for fact, prompt in prompts:
        while True:
            first, second = dialogues.answer(fact, random), dialogues.answer(fact, random)
            difference = gold_score(prompt, first) - gold_score(prompt, second)
            if abs(difference) > TIE:
                break
        if (difference < 0) != (random.random() < noise):
            first, second = second, first
        yield {"prompt": prompt, "chosen": first, "rejected": second}


def held_out_prompts(random: Random) -> Iterator[dict[str, str]]:
    """Every fact, in the one phrasing that no stage is trained on, in a random order."""
    questions = list(held_out_questions())
    random.shuffle(questions)
    for _, question in questions:
        yield {"prompt": dialogues.frame(question, random)}
