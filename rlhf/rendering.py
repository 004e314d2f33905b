"""A tokenizer's chat template as text: always the same text for the same messages, and answers without thinking aloud.

Templates that know `enable_thinking` get False, since a response is the answer alone. Templates that write today's date
get `DATE`: with the real one, the cached rows, a run that is resumed and the other ranks would have other prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from rlhf.errors import ModelError

DATE = datetime(2024, 7, 26)
# Strings of a template that may be formats of dates.
_FORMATS = re.compile(r"""'([^'\n{}]*%[^'\n{}]*)'|"([^"\n{}]*%[^"\n{}]*)\"""")


class Message(TypedDict):
    role: str  # "system", "user" or "assistant"
    content: str


class Rendering:
    """Renders conversations with the template of `tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        source = source_of(tokenizer)
        self._options: dict[str, Any] = {"enable_thinking": False} if "enable_thinking" in source else {}
        if is_dated(tokenizer):
            self._options["chat_template"] = at_date(source)

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation. Raises ModelError for one that the template refuses."""
        turns: Any = list(messages)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=add_generation_prompt, **self._options
                )
            )
        except Exception as error:  # jinja raises its own family, templates can raise anything
            raise ModelError(f"the chat template cannot be rendered: {error}") from error


def source_of(tokenizer: Any) -> str:
    """The template that renders a conversation; a tokenizer may have several, with names."""
    template = tokenizer.chat_template
    return str(tokenizer.get_chat_template() if isinstance(template, Mapping) else template)


def is_dated(tokenizer: Any) -> bool:
    """Whether the template asks for today's date."""
    return "strftime_now" in source_of(tokenizer)


def at_date(source: str) -> str:
    """A template in which `strftime_now` is a macro that tells DATE. Its formats are found among the strings."""
    formats = {a or b for a, b in _FORMATS.findall(source)} | {"%d %b %Y"}
    told = {f: DATE.strftime(f) for f in sorted(formats)}
    usual = json.dumps(told["%d %b %Y"])
    # the macro ends with a line break, which templates drop after a block, so the source begins a line as before
    return f"{{% macro strftime_now(f) %}}{{{{ {json.dumps(told)}.get(f, {usual}) }}}}{{% endmacro %}}\n{source}"
