"""Text from ids while they are generated: whole characters only, no part of a stop string, no white space at the ends.

A token is not always a piece of text. It may be half of a character, and a stop string may begin in one token and end
in another. `TextStream` holds back what is not certain yet; what it has given out never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf.template import Message, Template

_HALF = "\ufffd"  # what a decoder writes for bytes that are not a whole character
_ROLES = ("user", "assistant", "user")
_WORDS = ("zqfirst", "zqsecond", "zqthird")  # no template writes these on its own


@dataclass(frozen=True)
class Stops:
    """What ends an assistant's turn: end tokens; or the next turn's beginning, as tokens and as text."""

    end_ids: tuple[int, ...]
    turn_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens that end the turn."""
        return (*self.end_ids, *self.turn_ids)


def find_stops(template: Template, *, more_end_ids: Iterable[int] = ()) -> Stops:
    """What ends an answer: the end token, and what the template writes between an assistant's turn and the next user's.

    A model that forgets its end token goes on with the user's next turn. If the template opens that turn with a special
    token (`<|im_start|>`), the token also ends the answer. If not, the turn's first line does: `"\\nHuman:"` in the
    project's own template.
    """
    conversation: list[Message] = [{"role": r, "content": w} for r, w in zip(_ROLES, _WORDS, strict=True)]
    end_ids = tuple(sorted({template.end_token_id, *more_end_ids}))
    _, found, rest = template.render(conversation).partition(_WORDS[1])
    between, also_found, _ = rest.partition(_WORDS[2])
    if not (found and also_found):  # a template that keeps only the last turn: nothing to learn from it
        return Stops(end_ids)
    between = between.split(template.end_token, 1)[-1]
    opening = _special_at_start(template.tokenizer, between)
    if opening is not None:
        return Stops(end_ids, turn_ids=(opening,) if opening not in end_ids else ())
    first_line = next((line.strip() for line in between.splitlines() if line.strip()), "")
    new_line = "\n" if "\n" in between[: between.find(first_line)] else ""
    return Stops(end_ids, strings=(new_line + first_line,) if first_line else ())


def _special_at_start(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The special token at the beginning of `text`, after white space; None if there is none."""
    begin = text.lstrip()
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    fitting = [name for name in special if name and begin.startswith(name)]
    return special[max(fitting, key=len)] if fitting else None


def cut_at(text: str, strings: Sequence[str]) -> str:
    """`text` up to the first stop string in it. For stop strings that begin with a new line, one stands before the
    text."""
    places = [place for place in (("\n" + text).find(s) for s in strings if s) if place >= 0]
    return ("\n" + text)[1 : min(places)] if places else text


class TextStream:
    """`push` each id and print what comes back, then `finish`: together that is the text of the answer, stripped.

    A character whose bytes are not all there is held back, and dropped if they never come. Text that may become one of
    `stop_strings` is held back; once a stop string is complete, `stopped` is True and no more text comes out.
    """

    def __init__(self, tokenizer: Any, *, stop_strings: Sequence[str] = ()) -> None:
        self.stopped = False
        self.text = ""  # what was given out
        self._tokenizer = tokenizer
        self._stop_strings = tuple(s for s in stop_strings if s)
        self._ids: list[int] = []
        # Ids before `_context` are no longer needed. Those from there to `_read` are printed, but are decoded again
        # with the ids that follow, because decoders drop the space in front of the first word.
        self._context, self._read = 0, 0
        # Decoded and not given out. A new line stands before the answer, so that a stop string may be its first line.
        self._held = "\n"
        self._begun = False  # whether anything but white space was seen

    def push(self, token_id: int) -> str:
        """The text that is certain now, after this token; often empty."""
        if self.stopped:
            return ""
        self._ids.append(int(token_id))
        known = self._decode(self._context, self._read)
        text = self._decode(self._context, len(self._ids))
        if text.endswith(_HALF) or len(text) <= len(known):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._release(text[len(known) :])

    def finish(self) -> str:
        """The rest of the text, which was held back and did not become a stop string."""
        if self.stopped:
            return ""
        known = self._decode(self._context, self._read)
        rest = self._decode(self._context, len(self._ids)).rstrip(_HALF)
        self._context = self._read = len(self._ids)
        printed = self._release(rest[len(known) :])
        if self.stopped:
            return printed
        last, self._held = self._held.rstrip(), ""
        return printed + self._give(last)

    def _decode(self, begin: int, end: int) -> str:
        # No clean-up of spaces: it changes text that was already printed.
        return str(
            self._tokenizer.decode(self._ids[begin:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _release(self, new: str) -> str:
        """Add decoded text to what is held, and give out what is certain."""
        self._held += new
        places = [place for place in map(self._held.find, self._stop_strings) if place >= 0]
        if places:
            self.stopped = True
            last, self._held = self._held[: min(places)].rstrip(), ""
            return self._give(last)
        certain = len(self._held[: self._possible_stop()].rstrip())
        text, self._held = self._held[:certain], self._held[certain:]
        return self._give(text)

    def _possible_stop(self) -> int:
        """Where a stop string may have begun that the next tokens complete; the end of the held text if nowhere."""
        begin = len(self._held)
        for string in self._stop_strings:
            for length in range(min(len(string) - 1, len(self._held)), 0, -1):
                if self._held.endswith(string[:length]):
                    begin = min(begin, len(self._held) - length)
                    break
        return begin

    def _give(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        self.text += text
        return text
