"""The table of shapes: which columns each needs and which it also uses, by our names."""

from __future__ import annotations

from dataclasses import dataclass

from data.ranking import duel, ranked
from data.shapes import (
    BEFORE,
    BESIDE,
    Adapter,
    answered_talk,
    demonstration,
    instruction,
    pairs,
    pairs_of_conversation,
    pairs_of_conversations,
    pairs_of_instruction,
    plain_text,
    prompt_only,
    talk,
    whole,
)


@dataclass(frozen=True)
class Form:
    """A shape by its columns: those that it needs, those that it also uses, its function and its name."""

    needs: tuple[str, ...]
    uses: tuple[str, ...]
    adapt: Adapter
    says: str

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.needs, *self.uses)


TASK = ("input", *BEFORE)
ALONE = ("label", "score", "rank")  # what judges an answer without another beside it
PAIRS, TALKS = "preference pairs", "conversations"
ONLY_PROMPTS, TEXT = "prompts only", "plain text"
RANKED, JUDGED = "ranked answers, expanded to pairs", "two answers of which one is better"
# The first whose needed columns are all there is taken.
FORMS = (
    Form(("prompt", "answers"), (*TASK, "scores", "ranks", "labels"), ranked, RANKED),
    Form(("instruction", "answers"), (*TASK, "scores", "ranks", "labels"), ranked, RANKED),
    Form(("chosen", "rejected"), ("prompt", "instruction", *TASK, "messages", *BESIDE), pairs, PAIRS),
    Form(("instruction", "output", "rejected"), (*TASK, *BESIDE), pairs_of_instruction, PAIRS),
    Form(("messages", "rejected"), ("system", "tools", *BESIDE), pairs_of_conversation, PAIRS),
    Form(("messages", "rejected_messages"), ("system", "tools", *BESIDE), pairs_of_conversations, PAIRS),
    *(
        Form(("first", "second", *verdict), ("prompt", "instruction", *TASK, "messages"), duel, JUDGED)
        for verdict in (("winner",), ("preference",), ("first_score", "second_score"))
    ),
    Form(("prompt", "chosen"), (*TASK, *ALONE), demonstration, "prompts with a response"),
    Form(("messages", "chosen"), ("system", "tools", *ALONE), answered_talk, "conversations with a response"),
    Form(("messages",), ("system", "tools", *ALONE), talk, TALKS),
    Form(("instruction", "output"), (*TASK, *ALONE), instruction, "instructions with an output"),
    Form(("instruction", "chosen"), (*TASK, *ALONE), demonstration, "instructions with a response"),
    Form(("prompt",), TASK, prompt_only, ONLY_PROMPTS),
    Form(("instruction",), TASK, prompt_only, ONLY_PROMPTS),
    Form(("text",), (), plain_text, TEXT),
    Form(("chosen",), ("system", "tools", *ALONE), whole, "whole conversations with their response"),
)
TARGETS = sorted({name for form in FORMS for name in form.names})
