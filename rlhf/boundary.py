"""Where an assistant's turn begins and ends in what a chat template writes, found by rendering."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rlhf.errors import ModelError
from rlhf.rendering import Message, Rendering, thinking

# No template writes these on its own.
ASKED, ANSWER, OTHER = "zqasked", "zqanswer", "2 zqothers"
THOUGHT, OTHER_THOUGHT = "zqthought", "4 zqmused"
SPACES = " \n\t"
_OPEN_BLOCK = re.compile(r"<([\w:-]+)>(\s*)$")
_QUESTION: Message = {"role": "user", "content": ASKED}


@dataclass(frozen=True)
class Boundary:
    """What a template writes around the text of an assistant's turn.

    `asked` is a prompt as it writes it, `opening` what else stands before the text and belongs to the prompt: a header,
    an empty block of thoughts. `prefix` is white space that begins the response. `before` and `after` are all that
    stands around the text in a whole conversation; `strips` is the white space that is removed at the text's two ends.
    """

    asked: str
    opening: str
    prefix: str
    before: str
    after: str
    strips: tuple[str, str]


@dataclass(frozen=True)
class Thoughts:
    """What a template writes after a prompt behind which the model may think: `plain` and the text of a turn without
    thoughts; else `lead`, the thoughts, `between` and the text. `lead` is None where it does not write thoughts."""

    plain: str
    lead: str | None = None
    between: str = ""
    strips: tuple[str, str] = ("", "")


def boundary_of(rendering: Rendering) -> Boundary:
    """Raises ModelError where the boundary is not defined."""

    def whole(answer: str) -> str:
        return rendering([_QUESTION, {"role": "assistant", "content": answer}], add_generation_prompt=False)

    asked = rendering([_QUESTION], add_generation_prompt=True)
    around = []
    for answer in (ANSWER, OTHER):
        text = whole(answer)
        before, found, after = text.rpartition(answer)
        if not found:
            if not text.startswith(asked):
                raise ModelError(_NO_BOUNDARY)
            raise ModelError("the chat template does not write the content of an assistant turn")
        around.append((before, after))
    if around[0] != around[1]:
        raise ModelError(
            "what the chat template writes around an assistant turn depends on its content, so the boundary of a "
            "response is not defined; let it write the same header before each answer"
        )
    before, after = around[0]
    opening, prefix = _edge(asked, before)
    return Boundary(asked, opening, prefix, before, after, _stripped(whole, before, after, ANSWER))


def thoughts_of(rendering: Rendering, boundary: Boundary) -> Thoughts | None:
    """None for a template that writes the same prompt whether the model may think or not, and no thoughts."""
    question = thinking([_QUESTION])
    asked = rendering(question, add_generation_prompt=True)
    knows = rendering.knows.thoughts is not None
    if asked == boundary.asked and not knows:
        return None

    def whole(answer: str, thoughts: str) -> str:
        turn: Message = {"role": "assistant", "content": answer}
        return rendering(
            [*question, {**turn, "reasoning_content": thoughts} if thoughts else turn], add_generation_prompt=False
        )

    before = whole(ANSWER, "").rpartition(ANSWER)[0]
    try:
        plain = before[len(asked) :] if before.startswith(asked) else "".join(_edge(asked, before))
    except ModelError:
        return None
    around = []
    for thoughts, answer in ((THOUGHT, ANSWER), (OTHER_THOUGHT, OTHER)) if knows else ():
        before, found, rest = whole(answer, thoughts).partition(thoughts)
        between, said, after = rest.rpartition(answer)
        if found and said and before.startswith(asked):
            around.append((before, between, after))
    if len(around) < 2 or around[0] != around[1]:
        return None if knows else Thoughts(plain)
    before, between, after = around[0]
    strips = _stripped(lambda text: whole(ANSWER, text), before, between + ANSWER + after, THOUGHT)
    return Thoughts(plain, before[len(asked) :], between, strips)


def stripped(text: str, strips: tuple[str, str]) -> str:
    """A text without the white space that a template removes at its ends."""
    left, right = strips
    text = text.lstrip(None if left == SPACES else left) if left else text
    return text.rstrip(None if right == SPACES else right) if right else text


def _stripped(whole: Callable[[str], str], before: str, after: str, said: str) -> tuple[str, str]:
    """The white space that a template removes at the beginning and at the end of a text, `said` being one."""
    left = right = ""
    for space in SPACES:
        inner = whole(f"{space}{said}{space}").removeprefix(before).removesuffix(after)
        left += space if inner.startswith(said) else ""
        right += space if inner.endswith(said) else ""
    return left, right


def _edge(prompt: str, before: str) -> tuple[str, str]:
    """What is added to the prompt that the template writes, and white space that begins a response.

    `before` is what stands before an answer in a whole conversation. More than white space that only stands there (a
    header, an empty block of thoughts) belongs to the prompt. The prompt may also write more, such as the beginning of
    a block of thoughts, which is then closed.
    """
    if before.startswith(prompt):
        lead = before[len(prompt) :]
        if not lead.strip():
            return "", lead
        opening = lead.rstrip(" ")
        return opening, lead[len(opening) :]
    common = next((i for i, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), len(before))
    if ASKED not in before[:common] or before[common:].strip():
        raise ModelError(_NO_BOUNDARY)
    block = _OPEN_BLOCK.search(prompt[common:])
    if block is None:
        return "", ""
    name, space = block.groups()
    return f"{space}</{name}>{space * 2}", ""


_NO_BOUNDARY = (
    "the chat template's prompt is not the beginning of the rendered conversation, so the boundary of a "
    "response is not defined; fix its add_generation_prompt branch"
)
