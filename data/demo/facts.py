"""The demo's world: people say something about themselves and then ask for it.

What a person says is drawn anew for each prompt, so an answer cannot be known; it must be read in the prompt. Each kind
of fact has six questions. One of the six is held out for each answer: no training text of any stage asks in that way
where that answer is right. So the held-out prompts are new, but a model that has learned to read can answer them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from zlib import crc32


@dataclass(frozen=True, eq=False)
class Kind:
    """A sort of fact about the person who asks. In the templates `{a}` is the answer."""

    name: str
    answers: tuple[str, ...]
    said: tuple[str, ...]
    """How the person says it, in two ways."""
    reply: str
    """How an answer says it."""
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    kind: Kind
    answer: str

    @property
    def held_out(self) -> int:
        """The number of the question, among those of its kind, that no training uses; a stable function of the fact."""
        return crc32(f"{self.kind.name} {self.answer}".encode()) % len(self.kind.questions)

    def question(self, number: int) -> str:
        return self.kind.questions[number]

    def said(self, number: int) -> str:
        """The fact in the words of the person who asks."""
        return self.kind.said[number].format(a=self.answer)

    def reply(self, *, answer: str | None = None) -> str:
        """The fact as an answer states it, with `answer` instead of the right one, if given."""
        return self.kind.reply.format(a=answer or self.answer)


KINDS = (
    Kind(
        "city",
        ("Athens", "Berlin", "Cairo", "Dublin", "Lima", "Lisbon", "London", "Madrid", "Oslo", "Paris", "Rome", "Tokyo"),
        ("I live in {a}.", "My city is {a}."),
        "Your city is {a}.",
        ("What is my city?", "What did I say about my city?", "Tell me what my city is.",
         "Can you name my city?", "Do you know my city?", "Do you remember my city?"),
    ),
    Kind(
        "pet",
        ("cat", "dog", "horse", "rabbit", "parrot", "goat", "hamster", "turtle", "duck", "sheep", "donkey", "lizard"),
        ("I have a {a}.", "My pet is a {a}."),
        "Your pet is a {a}.",
        ("What is my pet?", "What did I say about my pet?", "Tell me what my pet is.",
         "Can you name my pet?", "Do you know my pet?", "Do you remember my pet?"),
    ),
    Kind(
        "job",
        ("baker", "doctor", "farmer", "teacher", "painter", "sailor", "lawyer", "driver", "nurse", "cook", "pilot",
         "singer"),
        ("I work as a {a}.", "I earn money as a {a}."),
        "Your job is {a}.",
        ("What is my job?", "What did I say about my job?", "Tell me what my job is.",
         "Can you name my job?", "Do you know my job?", "Do you remember my job?"),
    ),
    Kind(
        "food",
        ("bread", "cheese", "soup", "rice", "fish", "pizza", "cake", "salad", "honey", "eggs", "apples", "noodles"),
        ("I like to eat {a}.", "My favourite food is {a}."),
        "Your favourite food is {a}.",
        ("What is my favourite food?", "What did I say about my favourite food?", "Tell me what my favourite food is.",
         "Can you name my favourite food?", "Do you know my favourite food?", "Do you remember my favourite food?"),
    ),
    Kind(
        "car",
        ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "orange", "purple", "grey", "silver"),
        ("My car is {a}.", "I drive a {a} car."),
        "Your car is {a}.",
        ("What is the colour of my car?", "What did I say about my car?", "Tell me what colour my car is.",
         "Can you name the colour of my car?", "Do you know the colour of my car?", "Do you remember my car?"),
    ),
    Kind(
        "birthday",
        ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
         "December"),
        ("My birthday is in {a}.", "I was born in {a}."),
        "Your birthday is in {a}.",
        ("What is my birthday?", "What did I say about my birthday?", "Tell me what my birthday is.",
         "Can you name my birthday?", "Do you know my birthday?", "Do you remember my birthday?"),
    ),
)  # fmt: skip
FACTS = tuple(Fact(kind, answer) for kind in KINDS for answer in kind.answers)
_FACTS = {(fact.kind, fact.answer): fact for fact in FACTS}


def _pattern(kind: Kind, template: str) -> re.Pattern[str]:
    return re.compile(r"(?<!\w)" + re.escape(template).replace(re.escape("{a}"), f"(?P<a>{'|'.join(kind.answers)})"))


_SAID = [(kind, _pattern(kind, template)) for kind in KINDS for template in kind.said]
_REPLIES = [(kind, re.compile(rf"(?<!\w){re.escape(kind.reply.partition('{a}')[0])}")) for kind in KINDS]


@cache
def fact_of(prompt: str) -> Fact | None:
    """The fact that a prompt both says and asks for, or None. Text around them does not matter."""
    asked = [kind for kind in KINDS if any(question in prompt for question in kind.questions)]
    said = [_FACTS[kind, match["a"]] for kind, pattern in _SAID for match in pattern.finditer(prompt)]
    return next((fact for fact in said if fact.kind in asked), None)


def kinds_stated(text: str) -> set[Kind]:
    """The kinds of fact that an answer says something about, right or wrong."""
    return {kind for kind, pattern in _REPLIES if pattern.search(text)}


def wrong_answers(fact: Fact) -> list[str]:
    return [answer for answer in fact.kind.answers if answer != fact.answer]


def training_questions() -> Iterator[tuple[Fact, str]]:
    for fact in FACTS:
        for number in range(len(fact.kind.questions)):
            if number != fact.held_out:
                yield fact, fact.question(number)


def held_out_questions() -> Iterator[tuple[Fact, str]]:
    for fact in FACTS:
        yield fact, fact.question(fact.held_out)
