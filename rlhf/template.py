"""Prompts and turns as text and ids. One template renders a prompt in training, rollout, chat and evaluation.

Prompt ids end where the assistant's text begins: a header, or a block in which a model would think, belongs to the
prompt. Response ids are the turn's text and the end token. The two are tokenised separately and concatenated, so the
boundary is the same in training and in generation. Control tokens that a content spells are encoded as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rlhf import marks
from rlhf.boundary import ANSWER, ASKED, boundary_of, stripped, thoughts_of
from rlhf.errors import ModelError
from rlhf.marks import Span
from rlhf.rendering import Message, Rendering, may_think, source_of, spelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HUMAN_ASSISTANT", "Message", "Template", "install_template"]

# The project's template, for tokenizers that have none.
HUMAN_ASSISTANT = (
    "{{ bos_token if add_bos else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Human: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_WORDS = ("a", " a", "The", "1")


class _Marked(str):
    """A text in which spelled control tokens are marked (`transformers.mark_control_tokens`)."""


class Template:
    """A tokenizer's chat template, split at the text of the assistant's turn.

    `end_token_id` is what the template writes after an assistant turn, else the tokenizer's EOS. `prefix` is white
    space that belongs to the response (a space in the project's own template). Raises ModelError when the template
    cannot be rendered, when the boundary is not defined, or when there is no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._rendering = Rendering(tokenizer)
        self._marking = Rendering(tokenizer, with_marks=True) if marks.has_marks(source_of(tokenizer)) else None
        self._boundary = found = boundary_of(self._rendering)
        self._thoughts = thoughts_of(self._rendering, found)
        self.prefix = found.prefix
        self.end_token_id = self._end_token(found.after)
        self._control = self._control_tokens(found.before, found.after)
        [self._before] = self._ids(["a"])
        self._anchor = self._found_anchor(found.asked + found.opening)

    @property
    def end_token(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.end_token_id))

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a prompt, up to the text of the assistant's turn, or to its thoughts where it `thinks`."""
        text = self._rendering(messages, add_generation_prompt=True)
        return text if self.thinks(messages) else text + self._boundary.opening

    def written(self, text: str) -> str:
        """The text of an assistant turn as the template writes it: some templates strip it."""
        return stripped(text, self._boundary.strips)

    @property
    def writes_thoughts(self) -> bool:
        """Whether a response may have thoughts before its text."""
        return self._thoughts is not None and self._thoughts.lead is not None

    def thinks(self, messages: Sequence[Message]) -> bool:
        """Whether the response to a prompt begins with thoughts, or with what the template writes in their place."""
        return self._thoughts is not None and may_think(messages)

    def leaves_out_thoughts(self, messages: Sequence[Message]) -> bool:
        """Whether a prompt has thoughts that the template knows no field for."""
        return any("reasoning_content" in m for m in messages) and self._rendering.knows.thoughts is None

    def leaves_out_tools(self, messages: Sequence[Message]) -> bool:
        """Whether a prompt has tools that the template does not write."""
        return self._rendering.leaves_out_tools(messages)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt; `messages` end with a user turn."""
        return self.encode([self.prompt_text(messages)])[0]

    def response_ids(self, text: str, *, end: bool = True) -> list[int]:
        """Ids of an assistant turn and, unless `end` is False, its end token."""
        ids = self.encode([self.response_text(text)], responses=True)[0]
        return [*ids, self.end_token_id] if end else ids

    def text(self, response_ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens and without the template's first space: of
        `response_ids(t)` it is `written(t)`."""
        return self._decoded(response_ids, skip_special_tokens=True).removeprefix(self.prefix)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each id on its own, with the space that it begins with."""
        found = {i: self._decoded([i], skip_special_tokens=False) for i in set(ids)}
        return [found[i] for i in ids]

    # --- many at once, for `encode` -----------------------------------------------------------------------------------

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What `encode` takes for a prompt: as `render`, control tokens in the contents marked."""
        marked = self._marked(messages)
        return self.render(messages) if marked is None else _Marked(self.render(marked))

    def response_text(self, text: str, thoughts: str = "", *, thinks: bool = False) -> str:
        """What `encode` takes for a response, control tokens in it marked. With `thinks` the one to a prompt that
        `thinks`, with its thoughts if it has any."""
        said, thought, lead, between = self.written(text), "", self.prefix, ""
        if thinks and self._thoughts is not None:
            lead = self._thoughts.plain
            if thoughts and self._thoughts.lead is not None:
                lead, between = self._thoughts.lead, self._thoughts.between
                thought = stripped(thoughts, self._thoughts.strips)
        if self._control.search(thought + said):
            return _Marked(lead + self._mark(thought) + between + self._mark(said))
        return lead + thought + between + said

    def encode(self, texts: Sequence[str], *, responses: bool = False) -> list[list[int]]:
        """Ids of many texts of `prompt_text`, or of `response_text`, in few calls, which fast tokenizers spread over
        the cores.

        A SentencePiece tokenizer puts a space before what it encodes. A response follows the prompt's last words, so it
        is encoded behind them where that matters; then its ids are those of the whole conversation.
        """
        if not (responses and self._anchor):
            return self._ids(texts)
        [anchor] = self._ids([self._anchor])
        found = self._ids([type(text)(self._anchor + text) for text in texts])
        alone = [i for i, ids in enumerate(found) if ids[: len(anchor)] != anchor]
        ids = [ids[len(anchor) :] for ids in found]
        for i, own in zip(alone, self._ids([texts[i] for i in alone]), strict=True):
            ids[i] = own
        return ids

    def conversation(self, messages: Sequence[Message]) -> tuple[str, list[Span]] | None:
        """What `encode_spans` takes for a whole conversation: its text, and the characters that are the assistant's by
        the template's marks. None for a template without marks."""
        if self._marking is None or not all(marks.is_clear(spelled(m)) for m in messages):
            return None
        marked = self._marked(messages)
        text, spans = marks.read(self._marking(messages if marked is None else marked, add_generation_prompt=False))
        return text if marked is None else _Marked(text), spans

    def marks_problem(self) -> str | None:
        """What is wrong with the template's marks, in one line; None where they have the end token, or are none."""
        found = self.conversation([{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}])
        if found is None or any(self.end_token in found[0][span.start : span.end] for span in found[1]):
            return None
        return (
            f"the generation marks of the chat template leave out {self.end_token}, so the model does not learn to end "
            "its answers; put {% endgeneration %} behind it"
        )

    def encode_spans(self, conversations: Sequence[tuple[str, list[Span]]]) -> list[tuple[list[int], list[Span]]]:
        """Ids of whole conversations, and which of them are those of the spans."""
        if not self.tokenizer.is_fast:
            return [self._in_pieces(*conversation) for conversation in conversations]
        found = []
        for text, spans in conversations:
            if isinstance(text, _Marked):
                found.append(self._in_pieces(text, spans))
                continue
            encoded = self.tokenizer(text, add_special_tokens=False)
            ids: Any = encoded["input_ids"]
            tokens = [encoded.char_to_token(i) for i in range(len(text))]
            found.append((list(ids), [span.tokens(tokens, len(ids)) for span in spans]))
        return found

    def _in_pieces(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """As `encode_spans`, of a tokenizer that does not tell where its tokens are, and of a text with marks: each
        piece between the edges of spans is encoded behind a line break, which keeps SentencePiece's space away."""
        kind, ids, at = type(text), list[int](), {0: 0}
        [line] = self._ids(["\n"])
        for start, end in pairwise(sorted({0, len(text), *(edge for span in spans for edge in span)})):
            piece = text[start:end]
            alone, behind = self._ids([kind(piece), kind(f"\n{piece}")])
            ids += behind[len(line) :] if start and behind[: len(line)] == line else alone
            at[end] = len(ids)
        return ids, [Span(at[span.start], at[span.end]) for span in spans]

    def _marked(self, messages: Sequence[Message]) -> list[Message] | None:
        """Messages with their control tokens marked; None where they have none."""
        if not any(self._control.search(spelled(m)) for m in messages):
            return None
        return [self._mark(m) for m in messages]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        plain = [i for i, text in enumerate(texts) if not isinstance(text, _Marked)]
        found: list[list[int]] = [[] for _ in texts]
        if plain:
            encoded: Any = self.tokenizer([texts[i] for i in plain], add_special_tokens=False)["input_ids"]
            for i, ids in zip(plain, encoded, strict=True):
                found[i] = list(ids) if texts[i] else []
        for i, text in enumerate(texts):
            if isinstance(text, _Marked):
                found[i] = self._ids_of_marked(text)
        return found

    def _mark(self, value: Any, pattern: re.Pattern[str] | None = None) -> Any:
        """A text, or what holds texts, with the control tokens in it marked."""
        from transformers.utils.chat_template_utils import mark_control_tokens

        return mark_control_tokens(value, pattern or self._control)

    def _ids_of_marked(self, text: str) -> list[int]:
        from transformers.utils.chat_template_utils import encode_marked_chat

        try:
            return list(encode_marked_chat(self.tokenizer, text))
        except ValueError:  # a vocabulary (Unigram's) may make a control token of plain text: then it is broken in two
            start, end = self._mark("\n", re.compile("\n")).split("\n")
            broken = re.sub(f"{start}(.)([^{end}]*){end}", f"\\g<1>{start}\\g<2>", text)
            first, *others = (part.replace(end, "") for part in broken.split(start))
            ids, [line] = self._ids([first])[0], self._ids(["\n"])
            for part, alone in zip(self._ids([f"\n{part}" for part in others]), self._ids(others), strict=True):
                ids += part[len(line) :] if part[: len(line)] == line else alone
            return ids

    def _decoded(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of ids that follow others: some decoders drop the space in front of the first word."""
        start, whole = (
            self.tokenizer.decode(part, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
            for part in (self._before, [*self._before, *ids])
        )
        return str(whole)[len(start) :]

    # --- what the template writes -------------------------------------------------------------------------------------

    def _special(self) -> dict[str, int]:
        """All special tokens; not all of them have a role."""
        added: Any = self.tokenizer.added_tokens_decoder  # id → AddedToken
        special = dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))
        return {**special, **{token.content: index for index, token in added.items() if token.special}}

    def _end_token(self, suffix: str) -> int:
        special = set(self._special().values())
        written = [i for i in self._ids([suffix])[0] if i in special]
        if written:
            return written[0]
        end: Any = self.tokenizer.eos_token_id
        if end is None:
            raise ModelError("the tokenizer has no EOS token and its chat template writes none after a turn")
        return int(end)

    def _control_tokens(self, before: str, after: str) -> re.Pattern[str]:
        """Matches a token that a content must not become: a special one, or an added one that marks a turn.

        What an answer may open with (`<think>`) is no mark: of the header the first token counts alone.
        """
        names = {name for name in self._special() if len(name) > 1}
        added: Any = self.tokenizer.added_tokens_decoder
        ordinary = [t.content for t in added.values() if t.content.strip() and len(t.content) > 1]
        around_question, _, header = before.rpartition(ASKED)
        names |= {name for name in ordinary if name in around_question or name in after}
        in_header = sorted((header.find(name), -len(name), name) for name in ordinary if name in header)
        names |= {name for _, _, name in in_header[:1]}
        longest_first = sorted(names, key=lambda name: (-len(name), name))
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _found_anchor(self, asked: str) -> str:
        """What responses are encoded behind: the prompt's last words; nothing if their ids are the same alone; a line
        break where a space is lost behind the prompt, because a special token ends it."""
        tail = asked.rpartition(ASKED)[2]
        marks = [match.start() for match in self._control.finditer(tail)]
        tail = tail[marks[-1] :] if marks else tail
        alone = [self._ids_behind("", self.prefix + word) for word in _WORDS]
        behind = [self._ids_behind(tail, self.prefix + word) for word in _WORDS]
        for anchor in ("" if alone == behind else tail, "\n"):
            self._anchor = anchor
            if all(self.text(self.response_ids(word)) == self.written(word) for word in _WORDS):
                return anchor
        return ""

    def _ids_behind(self, anchor: str, text: str) -> list[int]:
        before, whole = self._ids([anchor, anchor + text])
        return whole[len(before) :] if whole[: len(before)] == before else self._ids([text])[0]


def install_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the project's; True if it had none. BOS is kept."""
    if tokenizer.chat_template:
        return False
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer has no EOS token: a response could never end; set eos_token in its folder")
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = HUMAN_ASSISTANT.replace(
        "{{ bos_token if add_bos else '' }}", "{{ bos_token }}" if adds_bos else ""
    )
    return True
