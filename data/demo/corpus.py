"""Pretraining text: first clean and short as in a schoolbook, then dialogues as of people, in the format of a chat.

From the first part, in which all answers are right, the model learns to answer what was asked, with what was said. The
second part has all manners and mistakes of people, so the base model can answer but seldom gives a good answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from data.demo.dialogues import SCHOOLBOOK, dialogues, statements
from rlhf.template import Template

STATEMENTS = 0.15
"""Share of texts in which people say two things and ask nothing; the others are dialogues."""
SECOND_QUESTION = 0.3
"""Share of people's dialogues in which another question follows."""
NO_END = 0.5
"""Share of those in which the first answer has no end token: such text is why base models invent the next turn."""
_PLACE = "\x00"


def texts(template: Template, random: Random, *, people: bool) -> Iterator[str]:
    """Endless texts, with their special tokens; `people`: the second part, else the schoolbook."""
    facts, talk = statements(random), dialogues(random, None if people else SCHOOLBOOK)
    begin = str(template.tokenizer.bos_token or "")
    turn = template.render([{"role": "user", "content": _PLACE}]).removeprefix(begin) + template.prefix

    def exchange(*, end: bool = True) -> str:
        prompt, response = next(talk)
        return turn.replace(_PLACE, prompt) + response + (template.end_token if end else "")

    while True:
        if random.random() < STATEMENTS:
            yield begin + next(facts) + template.end_token
        elif people and random.random() < SECOND_QUESTION:
            yield begin + exchange(end=random.random() >= NO_END) + "\n\n" + exchange()
        else:
            yield begin + exchange()
