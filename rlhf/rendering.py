"""A tokenizer's chat template as text: always the same text for the same messages, and answers without thinking aloud.

Templates that know `enable_thinking` get False, since a response is the answer alone, unless the conversation has
thoughts or options of its own. Templates that write today's date
get `DATE`: with the real one, the cached rows, a run that is resumed and the other ranks would have other prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NotRequired, TypedDict

from rlhf import marks
from rlhf.errors import ModelError

DATE = datetime(2024, 7, 26)
OF_THE_FIRST = ("tools", "options")  # what the first message brings for the whole conversation
THOUGHTS = ("reasoning_content", "thinking", "reasoning", "thoughts")  # fields that templates read thoughts from
THINKING = ("enable_thinking", "thinking")  # options that tell templates whether the model may think
# What a conversation says itself, or the caller of a template; none of its options.
RESERVED = (
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *(
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
    ),
    *("tokenizer_kwargs", "processor_kwargs"),
)
# Strings of a template that may be formats of dates.
_FORMATS = re.compile(r"""'([^'\n{}]*%[^'\n{}]*)'|"([^"\n{}]*%[^"\n{}]*)\"""")


class Message(TypedDict):
    """A turn. The first one of a conversation may bring the `tools` that the assistant may call, each as {"type":
    "function", "function": {…}}, and `options`, which the template gets by their names, such as enable_thinking; a turn
    of the assistant may have `tool_calls` of the same kind as tools."""

    role: str  # "system", "developer", "user", "assistant", or "tool" for what a call gave
    content: str
    tools: NotRequired[list[Any]]
    tool_calls: NotRequired[list[Any]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]  # what the assistant thought before the content
    options: NotRequired[dict[str, Any]]


class Rendering:
    """Renders conversations with the template of `tokenizer`; `with_marks`, it writes what `marks.read` takes."""

    def __init__(self, tokenizer: Any, *, with_marks: bool = False) -> None:
        self.tokenizer = tokenizer
        source = source_of(tokenizer)
        self._options: dict[str, Any] = {"enable_thinking": False} if "enable_thinking" in source else {}
        if with_marks:
            source = self._options["chat_template"] = marks.shown(source)
        if is_dated(tokenizer):
            self._options["chat_template"] = at_date(source)

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation. Raises ModelError for one that the template refuses, and for one with calls of
        tools that it does not write. Tools that it does not write are left out (`leaves_out_tools`)."""
        turns = [_turn(m, self.knows.thoughts if "reasoning_content" in m else None) for m in messages]
        if any(m["role"] == "tool" or "tool_calls" in m for m in messages):
            if self.knows.arguments is None:
                raise ModelError("the chat template does not write calls and results of tools")
            if self.knows.arguments is str:
                turns = [_with_written_arguments(turn) for turn in turns]
        if turns and any(m["role"] == "developer" for m in messages) and not self.knows.developer:
            turns = _with_one_system_turn(turns)
        tools = [] if self.leaves_out_tools(messages) else tools_of(messages)
        return self._rendered(
            turns, tools=tools, add_generation_prompt=add_generation_prompt, options=options_of(messages)
        )

    def _rendered(
        self,
        turns: Any,
        *,
        tools: list[Any],
        add_generation_prompt: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        options = {**self._options, **(options or {}), **({"tools": tools} if tools else {})}
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=add_generation_prompt, **options
                )
            )
        except Exception as error:  # jinja raises its own family, templates can raise anything
            raise ModelError(f"the chat template cannot be rendered: {error}") from error

    @cached_property
    def knows(self) -> Knows:
        """What the template writes beside questions and answers."""
        return Knows(self._rendered)

    def leaves_out_tools(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation has tools that the template does not write."""
        return bool(tools_of(messages)) and not self.knows.tools


class Knows:
    """What a template writes beside questions and answers, found out by rendering; `render` is a template's."""

    def __init__(self, render: Callable[..., str]) -> None:
        self._render = render

    @cached_property
    def tools(self) -> bool:
        """Whether it writes the tools that may be called."""
        return "zqname" in self._try([_QUESTION], tools=[_TOOL])

    @cached_property
    def arguments(self) -> type[dict[str, Any]] | type[str] | None:
        """As what the arguments of a call are given to it; None where it does not write calls and their results. One
        that writes a result as it writes a turn of the user or the assistant does not know results."""
        for kind, arguments in ((dict, _ARGUMENTS), (str, json.dumps(_ARGUMENTS))):
            talk = [_QUESTION, {**_CALL, "tool_calls": [_call(arguments)]}, _RESULT]
            text = self._try(talk)
            if "{'zqkey'" in text:  # as Python writes it: the template takes JSON text
                continue
            if all(word in text for word in ("zqname", "zqkey", "zqvalue", "zqresult")):
                others = [[*talk[:-1], {"role": role, "content": "zqresult"}] for role in ("user", "assistant")]
                return None if text in map(self._try, others) else kind
        return None

    @cached_property
    def developer(self) -> bool:
        """Whether it writes a turn of the developer as what it is."""
        said = {"content": "zqsaid"}
        text = self._try([{"role": "developer", **said}, _QUESTION])
        others = ([{"role": role, **said}, _QUESTION] for role in ("user", "assistant"))
        return "zqsaid" in text and text not in map(self._try, others)

    @cached_property
    def thoughts(self) -> str | None:
        """The field of a turn that it writes as what the assistant thought before the content; None where it writes
        none."""
        for field in THOUGHTS:
            text = self._try([_QUESTION, {"role": "assistant", "content": "zqsaid", field: "zqthought"}])
            if -1 < text.find("zqthought") < text.rfind("zqsaid"):
                return field
        return None

    def _try(self, turns: list[Any], *, tools: Sequence[Any] = ()) -> str:
        try:
            return self._render(turns, tools=list(tools) or [_TOOL] * any("tool_calls" in t for t in turns))
        except ModelError:
            return ""


_QUESTION = {"role": "user", "content": "zqasked"}
_ARGUMENTS = {"zqkey": "zqvalue"}
_CALL = {"role": "assistant", "content": ""}
_RESULT = {"role": "tool", "name": "zqname", "tool_call_id": "zqcall001", "content": "zqresult"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "zqname",
        "description": "zq",
        "parameters": {"type": "object", "properties": {"zqkey": {"type": "string", "description": "zq"}}},
    },
}


def _call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": "zqcall001", "function": {"name": "zqname", "arguments": arguments}}


def spelled(message: Message) -> str:
    """All that a message says, as one text."""
    return message["content"] if len(message) == 2 else json.dumps(message, ensure_ascii=False)


def tools_of(messages: Sequence[Message]) -> list[Any]:
    """The tools that the assistant of a conversation may call."""
    return list(messages[0].get("tools") or ()) if messages else []


def options_of(messages: Sequence[Message]) -> dict[str, Any]:
    """The options that a conversation has for its template."""
    return dict(messages[0].get("options") or {}) if messages else {}


def may_think(messages: Sequence[Message]) -> bool:
    """Whether the options of a conversation say that the model may think before it answers."""
    options = options_of(messages)
    return any(options.get(name) for name in THINKING)


def thinking(messages: Sequence[Message]) -> list[Message]:
    """A conversation in which the model may think before it answers, unless its options say otherwise."""
    if not messages or any(name in options_of(messages) for name in THINKING):
        return list(messages)
    return [{**messages[0], "options": {**dict.fromkeys(THINKING, True), **options_of(messages)}}, *messages[1:]]


def as_first(message: Message, first: Message) -> Message:
    """A message in the place of the first one, with what that brings for the whole conversation."""
    found: Any = {**message, **{k: v for k, v in first.items() if k in OF_THE_FIRST}}
    return found


def _turn(message: Message, field: str | None) -> dict[str, Any]:
    """A message as the template gets it, its thoughts in the `field` that it reads."""
    turn = {k: v for k, v in message.items() if k not in (*OF_THE_FIRST, "reasoning_content")}
    return {**turn, field: message["reasoning_content"]} if field and "reasoning_content" in message else turn


def _with_written_arguments(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn whose calls have their arguments as JSON text."""
    if "tool_calls" not in turn:
        return turn
    functions = [call["function"] for call in turn["tool_calls"]]
    written = [{**f, "arguments": json.dumps(f["arguments"], ensure_ascii=False)} for f in functions]
    calls = zip(turn["tool_calls"], written, strict=True)
    return {**turn, "tool_calls": [{**call, "function": function} for call, function in calls]}


def _with_one_system_turn(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of system and developer as one of the system's, for a template that knows no developer."""
    first = [turn for turn in turns if turn["role"] in ("system", "developer")]
    text = "\n\n".join(turn["content"] for turn in first)
    return [{"role": "system", "content": text}, *(turn for turn in turns if turn not in first)]


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
