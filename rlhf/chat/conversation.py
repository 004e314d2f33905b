"""A conversation with one model: its turns, those that fit the model's context, and one answer as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rlhf.errors import DataError
from rlhf.generation.speaker import Speaker
from rlhf.generation.streaming import TextStream
from rlhf.template import Message

if TYPE_CHECKING:
    from rlhf.generation.drawing import Sampling


@dataclass
class Conversation:
    """A system prompt, which may be empty, and turns of a question and its answer."""

    speaker: Speaker
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)

    def messages(self, question: str | None = None, *, skip: int = 0) -> list[Message]:
        """The messages for the template, without the `skip` oldest turns, with `question` at the end."""
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self.turns[skip:]:
            found.append({"role": "user", "content": asked})
            found.append({"role": "assistant", "content": answered})
        if question is not None:
            found.append({"role": "user", "content": question})
        return found

    def fit(self, question: str, max_new_tokens: int) -> Prompt:
        """The prompt's ids, with as many of the latest turns as leave room for an answer in the model's context.

        The answer may have `max_new_tokens` tokens, or half of the context if that is less. Raises DataError when the
        question alone fills the context.
        """
        limit = self.speaker.limit
        for skip in range(len(self.turns) + 1):
            ids = self.speaker.template.prompt_ids(self.messages(question, skip=skip))
            if limit is None or len(ids) + min(max_new_tokens, limit // 2) <= limit:
                return Prompt(ids, max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids)), skip)
        assert limit is not None
        if len(ids) >= limit:
            raise DataError(
                f"{self.speaker.label}: the question has {len(ids)} tokens and the model's context has {limit}; "
                "ask a shorter one"
            )
        return Prompt(ids, limit - len(ids), len(self.turns))


@dataclass(frozen=True)
class Prompt:
    """Ids, the tokens that an answer may have, and how many of the oldest turns were left out."""

    ids: list[int]
    max_new_tokens: int
    skipped: int


class Answer:
    """One answer: iterate over its pieces, then read `text`, `tokens` and `ended`.

    `ended`: "end" (a stop token), "next turn" (the model began to write the user's), "limit" or "interrupted".
    """

    def __init__(
        self,
        speaker: Speaker,
        prompt: Prompt,
        sampling: Sampling,
        *,
        seed: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.speaker, self.prompt = speaker, prompt
        self.text, self.tokens, self.ended = "", 0, "limit"
        self._sampling = replace(sampling, max_new_tokens=prompt.max_new_tokens, stop_token_ids=speaker.stops.token_ids)
        self._seed, self._interrupted = seed, interrupted

    def __iter__(self) -> Iterator[str]:
        """Pieces of text; some are empty."""
        stream = TextStream(self.speaker.template.tokenizer, stop_strings=self.speaker.stops.strings)
        with closing(self.speaker.sampler.stream(self.prompt.ids, self._sampling, seed=self._seed)) as ids:  # type: ignore[type-var]
            for token_id in ids:
                if self._interrupted():
                    self.ended = "interrupted"
                    break
                self.tokens += 1
                if token_id in self._sampling.stop_token_ids:
                    self.ended = "end" if token_id in self.speaker.stops.end_ids else "next turn"
                    break
                piece = stream.push(token_id)
                self.text = stream.text
                yield piece
                if stream.stopped:
                    self.ended = "next turn"
                    break
        last = stream.finish()
        self.text = stream.text
        yield last
