"""Prompts and turns as text and ids. One template renders a prompt in training, rollout, chat and evaluation.

Prompt ids end where the assistant's turn begins; response ids are the turn's text and the end token. The two are
tokenised separately and concatenated, so the boundary is the same in training and in generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from rlhf.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
_PROBE = "probe"


class Message(TypedDict):
    role: str  # "system", "user" or "assistant"
    content: str


class Template:
    """A tokenizer's chat template, split at the assistant's turn.

    `end_token_id` is what the template writes after an assistant turn, else the tokenizer's EOS. `prefix` is what it
    writes between the prompt and the turn's text (a space in the project's own). Raises ModelError when the template
    cannot be rendered, when the prompt is not a prefix of the whole, or when there is no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        question: list[Message] = [{"role": "user", "content": _PROBE}]
        prompt = self.render(question)
        whole = self._apply([*question, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ModelError(
                "the chat template's prompt is not the beginning of the rendered conversation, so the boundary of a "
                "response is not defined; fix its add_generation_prompt branch"
            )
        self.prefix, found, suffix = whole[len(prompt) :].rpartition(_PROBE)
        if not found:
            raise ModelError("the chat template does not write the content of an assistant turn")
        self.end_token_id = self._end_token(suffix)
        self.strips = (
            self._apply([*question, {"role": "assistant", "content": f" {_PROBE} "}], add_generation_prompt=False)
            == whole
        )

    def _end_token(self, suffix: str) -> int:
        added: Any = self.tokenizer.added_tokens_decoder  # id → AddedToken; not all special ones have a role
        special = {*self.tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
        written = [i for i in self._ids(suffix) if i in special]
        if written:
            return written[0]
        end: Any = self.tokenizer.eos_token_id
        if end is None:
            raise ModelError("the tokenizer has no EOS token and its chat template writes none after a turn")
        return int(end)

    @property
    def end_token(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.end_token_id))

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a prompt, up to the start of the assistant's turn."""
        return self._apply(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt; `messages` end with a user turn."""
        return self._ids(self.render(messages))

    def response_ids(self, text: str, *, end: bool = True) -> list[int]:
        """Ids of an assistant turn and, unless `end` is False, its end token."""
        ids = self._ids(self.prefix + (text.strip() if self.strips else text))
        return [*ids, self.end_token_id] if end else ids

    def text(self, response_ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens and without the template's first space."""
        return str(self.tokenizer.decode(list(response_ids), skip_special_tokens=True)).strip()

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        turns: Any = list(messages)
        try:
            return str(
                self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except Exception as error:  # jinja raises its own family, templates can raise anything
            raise ModelError(f"the chat template cannot be rendered: {error}") from error


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
