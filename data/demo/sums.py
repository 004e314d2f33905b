"""The second demo's world: sums worked column by column, by people who often forget to carry.

A sum and its working: "478 + 365" and "8+5=13 7+6=13+1=14 4+3=7+1=8 #### 843". Whoever forgets a carry leaves it at
"7+6=13", and goes on from there; some write a wrong digit. So most workings are wrong, and a model that imitates them
is as bad. The sums that are asked all have a carry to forget. Those that are held out are never worked for a model, in
either order.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from rlhf.template import Template

DIGITS = (2, 3)
"""Digits of both numbers. Sums of two digits have one carry, those of three up to two: where the first are seldom
right, the others are hardly ever, until the carry is learned from the first."""
FORGETS = 0.7
"""Share of the carries that people forget."""
SLIPS = 0.01
"""Share of the columns whose sum is one too high or too low."""
TRAINING, HELD_OUT = 3000, 256

Sum = tuple[int, int]


def carries(a: int, b: int) -> int:
    """Of a sum of numbers with equally many digits: the columns that get a carry. 95 + 17 has one, 40 + 80 none."""
    carry = found = 0
    for x, y in _columns(a, b)[:-1]:
        carry = int(x + y + carry > 9)
        found += carry
    return found


def working(a: int, b: int, random: Random, *, forgets: float = FORGETS, slips: float = SLIPS) -> str:
    """The working of a sum and, behind ####, the answer that it leads to."""
    steps, answer, carry = [], "", 0
    for x, y in _columns(a, b):
        total = x + y
        if random.random() < slips:
            total += random.choice((-1, 1)) if total else 1
        steps.append(f"{x}+{y}={total}")
        if carry and random.random() >= forgets:
            total += 1
            steps[-1] += f"+1={total}"
        carry, answer = total // 10, f"{total % 10}{answer}"
    return f"{' '.join(steps)} #### {carry or ''}{answer}"


def question(a: int, b: int) -> str:
    return f"{a} + {b}"


def asked(seed: int) -> tuple[list[Sum], list[Sum]]:
    """The sums of the training data and the held-out ones, each with a carry; no two are the same, in either order."""
    random, found = Random(f"asked {seed}"), {}
    while len(found) < TRAINING + HELD_OUT:
        a, b = _numbers(random, random.choice(DIGITS))
        if carries(a, b):
            found.setdefault((min(a, b), max(a, b)), (a, b))
    drawn = list(found.values())
    return drawn[HELD_OUT:], drawn[:HELD_OUT]


def training_rows(seed: int) -> Iterator[dict[str, str]]:
    """Sums, workings as people write them, and right answers. Stage 1 reads the workings of its share of the sums, the
    check of stage 3 the answers of the others."""
    random = Random(f"workings {seed}")
    for a, b in asked(seed)[0]:
        yield {"prompt": question(a, b), "response": working(a, b, random), "solution": str(a + b)}


def held_out_rows(seed: int) -> Iterator[dict[str, str]]:
    """Sums and right answers, which only the evaluation reads."""
    for a, b in asked(seed)[1]:
        yield {"prompt": question(a, b), "solution": str(a + b)}


def texts(template: Template, seed: int) -> Iterator[str]:
    """Endless worked sums as people write them, in the format of a chat, with their special tokens; all but those that
    are held out."""
    random, held_out = Random(f"texts {seed}"), {frozenset(pair) for pair in asked(seed)[1]}
    begin = str(template.tokenizer.bos_token or "")
    while True:
        a, b = _numbers(random, random.choice(DIGITS))
        if frozenset((a, b)) not in held_out:
            turn = template.render([{"role": "user", "content": question(a, b)}]) + template.prefix
            yield begin + turn.removeprefix(begin) + working(a, b, random) + template.end_token


def _numbers(random: Random, digits: int) -> Sum:
    least = 10 ** (digits - 1)
    return random.randrange(least, 10 * least), random.randrange(least, 10 * least)


def _columns(a: int, b: int) -> list[Sum]:
    """Digits of both numbers, the last ones first."""
    return [(int(x), int(y)) for x, y in zip(str(a)[::-1], str(b)[::-1], strict=True)]
