"""The facts of the demo: some 240 small facts of seven kinds, each with six ways to ask for it.

One of the six is held out for each fact: no training text of any stage asks for that fact in that way. So the held-out
questions are new, but a model that knows the fact and has seen the phrasing with other facts can answer them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from zlib import crc32

CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels",
    "Bulgaria": "Sofia", "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing", "Croatia": "Zagreb",
    "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "Estonia": "Tallinn", "Finland": "Helsinki",
    "France": "Paris", "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest", "Iceland": "Reykjavik",
    "India": "New Delhi", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi",
    "Latvia": "Riga", "Nepal": "Kathmandu", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Romania": "Bucharest", "Serbia": "Belgrade", "Spain": "Madrid", "Sweden": "Stockholm",
    "Thailand": "Bangkok", "Turkey": "Ankara", "Ukraine": "Kyiv", "Vietnam": "Hanoi",
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("early", "late"), ("old", "young"), ("wet", "dry"),
    ("light", "dark"), ("loud", "quiet"), ("rich", "poor"), ("strong", "weak"), ("full", "empty"), ("hard", "soft"),
    ("high", "low"), ("happy", "sad"), ("open", "closed"), ("clean", "dirty"), ("thick", "thin"), ("wide", "narrow"),
    ("deep", "shallow"), ("sharp", "blunt"), ("sweet", "sour"), ("brave", "afraid"), ("rough", "smooth"),
    ("cheap", "expensive"), ("near", "far"),
]  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid", "pig": "piglet",
    "duck": "duckling", "hen": "chick", "frog": "tadpole", "swan": "cygnet", "bear": "cub", "deer": "fawn",
}  # fmt: skip
SOUNDS = {
    "dog": "bark", "cat": "meow", "cow": "moo", "sheep": "bleat", "pig": "oink", "duck": "quack", "lion": "roar",
    "wolf": "howl", "horse": "neigh", "frog": "croak", "snake": "hiss", "bee": "buzz",
}  # fmt: skip
COLOURS = {
    "snow": "white", "coal": "black", "grass": "green", "blood": "red", "chocolate": "brown", "the clear sky": "blue",
    "a lemon": "yellow", "a carrot": "orange", "lavender": "purple", "an elephant": "grey", "a flamingo": "pink",
}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
LARGEST_SUMMAND = 6


@dataclass(frozen=True, eq=False)
class Kind:
    """A sort of fact. In the templates `{s}` is the subject and `{a}` the answer."""

    name: str
    answers: Mapping[str, str]
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    """The first is a full answer; the others also occur in pretraining text."""


@dataclass(frozen=True)
class Fact:
    kind: Kind
    subject: str
    answer: str

    @property
    def held_out(self) -> int:
        """The number of the question, among those of its kind, that no training uses; a stable function of the fact."""
        return crc32(f"{self.kind.name} {self.subject}".encode()) % len(self.kind.questions)

    def question(self, number: int) -> str:
        return self.kind.questions[number].format(s=self.subject)

    def statement(self, number: int = 0, *, answer: str | None = None) -> str:
        """The fact as a sentence without its capital letter, with `answer` instead of the right one, if given."""
        return self.kind.statements[number].format(s=self.subject, a=answer or self.answer)


def sentence(text: str) -> str:
    """`text` with a capital letter."""
    return text[:1].upper() + text[1:]


def _chain(names: list[str]) -> dict[str, str]:
    return {name: names[(i + 1) % len(names)] for i, name in enumerate(names)}


KINDS = (
    Kind(
        "capital",
        CAPITALS,
        (
            "What is the capital of {s}?", "Which city is the capital of {s}?", "Tell me the capital of {s}.",
            "Can you name the capital of {s}?", "Do you know the capital of {s}?", "What is {s}'s capital?",
        ),
        ("the capital of {s} is {a}.", "{s} has the capital {a}."),
    ),
    Kind(
        "opposite",
        {**dict(OPPOSITES), **{b: a for a, b in OPPOSITES}},
        (
            "What is the opposite of {s}?", "Which word is the opposite of {s}?", "Tell me the opposite of {s}.",
            "Can you name the opposite of {s}?", "Do you know the opposite of {s}?", "Which word means not {s}?",
        ),
        ("the opposite of {s} is {a}.", "what is not {s} is {a}."),
    ),
    Kind(
        "sum",
        {
            f"{a} plus {b}": str(a + b)
            for a in range(1, LARGEST_SUMMAND + 1)
            for b in range(1, LARGEST_SUMMAND + 1)
        },
        (
            "What is {s}?", "How much is {s}?", "Tell me what {s} is.",
            "Can you work out {s}?", "Do you know what {s} is?", "What does {s} make?",
        ),
        ("{s} is {a}.", "{s} makes {a}."),
    ),
    Kind(
        "young",
        YOUNG,
        (
            "What is a young {s} called?", "What do you call a young {s}?", "Tell me what a young {s} is called.",
            "Can you say what a young {s} is called?", "Do you know the name of a young {s}?", "What is a baby {s}?",
        ),
        ("a young {s} is called a {a}.", "a baby {s} is a {a}."),
    ),
    Kind(
        "sound",
        SOUNDS,
        (
            "What sound does a {s} make?", "Which sound does a {s} make?", "Tell me the sound of a {s}.",
            "Can you name the sound of a {s}?", "Do you know the sound of a {s}?", "What is the sound of a {s}?",
        ),
        ("the sound of a {s} is a {a}.", "a {s} makes a {a}."),
    ),
    Kind(
        "colour",
        COLOURS,
        (
            "What is the colour of {s}?", "Which colour is {s}?", "Tell me the colour of {s}.",
            "Can you name the colour of {s}?", "Do you know the colour of {s}?", "What colour is {s}?",
        ),
        ("the colour of {s} is {a}.", "{s} is {a}."),
    ),
    Kind(
        "next",
        {**_chain(DAYS), **_chain(MONTHS)},
        (
            "What comes after {s}?", "Which one comes after {s}?", "Tell me what comes after {s}.",
            "Can you say what comes after {s}?", "Do you know what comes after {s}?", "What follows {s}?",
        ),
        ("after {s} comes {a}.", "{s} is followed by {a}."),
    ),
)  # fmt: skip
FACTS = tuple(Fact(kind, subject, answer) for kind in KINDS for subject, answer in kind.answers.items())
_BY_SUBJECT = {(fact.kind.name, fact.subject): fact for fact in FACTS}
_QUESTIONS = [
    (kind.name, re.compile(re.escape(question).replace(re.escape("{s}"), "(?P<s>[A-Za-z0-9 ]+?)")))
    for kind in KINDS
    for question in kind.questions
]


def fact_of(prompt: str) -> Fact | None:
    """The fact that a prompt asks for, or None. Text around the question does not matter."""
    for kind, pattern in _QUESTIONS:
        for match in pattern.finditer(prompt):
            fact = _BY_SUBJECT.get((kind, match["s"]))
            if fact is not None:
                return fact
    return None


def wrong_answers(fact: Fact) -> list[str]:
    """Answers of the fact's kind that are not its own: for a sum the numbers near it, for a day the other days."""
    if fact.kind.name == "sum":
        right = int(fact.answer)
        return [str(right + d) for d in (-3, -2, -1, 1, 2, 3) if right + d >= 2]
    own = MONTHS if fact.subject in MONTHS else DAYS if fact.subject in DAYS else list(fact.kind.answers.values())
    return [answer for answer in dict.fromkeys(own) if answer not in (fact.answer, fact.subject)]


def training_questions() -> Iterator[tuple[Fact, str]]:
    for fact in FACTS:
        for number in range(len(fact.kind.questions)):
            if number != fact.held_out:
                yield fact, fact.question(number)


def held_out_questions() -> Iterator[tuple[Fact, str]]:
    for fact in FACTS:
        yield fact, fact.question(fact.held_out)
