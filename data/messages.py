"""Messages as sources write them → ours, with calls and results of tools in one form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.example import RowError, Unlearned, check_text, kind_of
from rlhf.rendering import THOUGHTS
from rlhf.template import Message

SPEAKERS = {
    "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "chatbot": "assistant", "ai": "assistant",
    "function": "tool", "observation": "tool", "ipython": "tool", "tool_response": "tool",
}  # fmt: skip
CALLERS = ("function_call", "tool_call")  # roles whose text is the call of a tool
ROLES = ("system", "developer", "user", "assistant", "tool")
CALLS = ("tool_calls", "function_call")  # fields of a turn that ends in the call of a tool
# Fields of a turn that say whether it is to be learned.
LEARN = ("weight", "train", "training", "loss", "loss_scale", "loss_mask")


def messages(value: Any, name: str) -> list[Message]:
    """A list of {role, content}, or {from, value} as in ShareGPT, with the roles' names changed to ours; with calls and
    results of tools in one form."""
    if not isinstance(value, (list, tuple)):
        raise RowError(f"{name} is {kind_of(value)}, not a list of messages")
    turns: list[Message] = []
    for number, item in enumerate(value):
        where = f"{name} (message {number + 1})"
        if isinstance(item, int):
            raise RowError(f"{name} holds numbers (tokens?), neither text nor messages; give the texts")
        if not isinstance(item, Mapping):
            raise RowError(f"{where} is {kind_of(item)}, not a {{role, content}} mapping")
        if not {"role", "from"} & item.keys():
            raise RowError(f"{where} has no role (it has {', '.join(map(str, item))}); write it as {{role, content}}")
        role: Any = item.get("role", item.get("from"))
        content: Any = item.get("content", item.get("value"))
        role = SPEAKERS.get(str(role), role)
        if role in CALLERS:
            turns.append({"role": "assistant", "content": "", "tool_calls": read_calls(content, where)})
            continue
        if role not in ROLES:
            raise RowError(f"{where} has the role {role!r}, not {', '.join(ROLES[:-1])} or {ROLES[-1]}")
        calls = read_calls(next(item[n] for n in CALLS if item.get(n)), where) if calls_a_tool(item) else []
        if content is None and calls:
            content = ""
        if role == "tool" and isinstance(content, (list, dict)):
            content = json.dumps(content, ensure_ascii=False, default=str)
        check_text(content, where)
        turn: Message = {"role": role, "content": str(content)}
        if calls and role == "assistant":
            turn["tool_calls"] = calls
        if role == "assistant" and (thoughts := _thoughts(item)):
            check_text(thoughts, f"{where}, thoughts")
            turn["reasoning_content"] = thoughts
        for field in ("tool_call_id", "name") if role == "tool" else ():
            if isinstance(item.get(field), str):
                turn[field] = item[field]
        turns.append(turn)
    return turns


def _thoughts(item: Mapping[str, Any]) -> str:
    """What the assistant thought before a turn."""
    return next((item[n] for n in THOUGHTS if isinstance(item.get(n), str) and item[n].strip()), "")


def read_calls(value: Any, where: str) -> list[Any]:
    """Calls of tools in one form, {"type": "function", "function": {"name", "arguments"}}, from that form or without
    its frame, one or several, as JSON text or not. Their arguments are a mapping."""
    calls = []
    found = _from_json(value)
    for call in found if isinstance(found, (list, tuple)) else [found]:
        call = _from_json(call)
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise RowError(f"{where} has a tool call without a name; write it as {{name, arguments}}")
        arguments = _from_json(function.get("arguments", function.get("parameters")) or {})  # type: ignore[union-attr]
        if not isinstance(arguments, Mapping):
            raise RowError(f"{where} calls the tool {name!r} with arguments that are not a JSON object")
        call_id = {"id": call["id"]} if isinstance(call.get("id"), str) else {}  # type: ignore[union-attr]
        calls.append({"type": "function", **call_id, "function": {"name": name, "arguments": _filled(arguments)}})
    return calls


def read_tools(value: Any) -> list[Any] | None:
    """A column of tools as {"type": "function", "function": {…}} each; None for what is no list of functions with
    names, and for an empty one."""
    found = _from_json(value)
    tools = []
    for tool in found if isinstance(found, (list, tuple)) else []:
        tool = _from_json(tool)
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return None
        tools.append({"type": "function", "function": _filled(function)})
    return tools or None


def _from_json(value: Any) -> Any:
    """What a text spells as JSON; else the value itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _filled(value: Any) -> Any:
    """A value without nulls, which tables have for each field that only another row has."""
    if isinstance(value, Mapping):
        return {str(k): _filled(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_filled(v) for v in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def with_tools(prompt: Sequence[Message], tools: Any) -> list[Message]:
    """A prompt whose first message brings the tools of a column."""
    found = read_tools(tools)
    if not found or not prompt:
        return list(prompt)
    first: Message = {**prompt[0], "tools": found}
    return [first, *prompt[1:]]


def calls_a_tool(message: Mapping[str, Any]) -> bool:
    return any(message.get(name) for name in CALLS)


def check_learned(message: Mapping[str, Any]) -> None:
    """Raises Unlearned for an assistant turn that is no answer to learn: a call of a tool, or a turn that says so."""
    if calls_a_tool(message) or message.get("role", message.get("from")) in CALLERS:
        raise Unlearned("turn with a tool call (tool_calls) is not learned")
    for name in LEARN:
        value = message.get(name)
        if value in (False, 0) or (isinstance(value, str) and value.strip().lower() in ("false", "0", "0.0")):
            raise Unlearned(f"turn with {name}={value} is not learned")
