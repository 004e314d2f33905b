"""What a reward function reads: its named parameters, and what it takes out of its `**columns`. Imports no torch."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# What every function may take beside the columns of the data, as in TRL.
GIVEN = (
    *("prompts", "completions", "completion_ids", "completions_ids", "trainer_state"),
    *("log_extra", "log_metric"),
)
SEES = ("completions", "completion_ids", "completions_ids")


@dataclass(frozen=True)
class Reads:
    """`takes` are the names of GIVEN that it is called with; `needs` and `may` are columns of the data: it cannot be
    called without the first, it can without the second. `everything`: it may read any column."""

    takes: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    may: list[str] = field(default_factory=list)
    everything: bool = False


def reads(function: Callable[..., Any]) -> Reads:
    """Raises ValueError for a function that cannot be called by keyword, or that does not see the responses."""
    signature = inspect.signature(function)
    takes: list[str] = []
    needs: list[str] = []
    may: list[str] = []
    rest = ""
    for name, parameter in signature.parameters.items():
        has_default = parameter.default is not parameter.empty
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = name
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(f"its parameter '{name}' cannot be given by name (it stands before a /)")
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif name in GIVEN:
            if not (has_default and name.startswith("log_")):
                takes.append(name)
        else:
            (may if has_default else needs).append(name)
    if not rest and not set(takes) & set(SEES):
        raise ValueError(
            f"it takes {', '.join(signature.parameters) or 'nothing'} and so does not see the responses; write it as "
            "f(prompts, completions, **columns), which returns a number for each completion"
        )
    if not rest:
        return Reads(takes, needs, may)
    names = _taken_out(function, rest)
    takes += [name for name in GIVEN if name not in takes and not name.startswith("log_")]
    if names is None:
        return Reads(takes, needs, may, everything=True)
    needs += [n for n, is_needed in names.items() if is_needed and n not in (*GIVEN, *needs, *may)]
    may += [n for n, is_needed in names.items() if not is_needed and n not in (*GIVEN, *needs, *may)]
    return Reads(takes, needs, may)


def _taken_out(function: Callable[..., Any], rest: str) -> dict[str, bool] | None:
    """The names that a function takes out of its `**rest`, True where it fails without one: `rest["a"]`, not
    `rest.get("a")`. None if it uses `rest` in another way, so that it may read any name."""
    tree = _source(function)
    if tree is None:
        return None
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found: dict[str, bool] = {}
    asked: set[str] = set()  # by `in`, so that their absence is provided for
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Name) and node.id == rest):
            continue
        above: Any = parents.get(node)
        if isinstance(above, ast.Subscript) and above.value is node and (name := _text(above.slice)) is not None:
            found[name] = True
        elif isinstance(above, ast.Attribute) and above.attr in ("get", "pop"):
            call: Any = parents.get(above)
            name = _text(call.args[0]) if isinstance(call, ast.Call) and call.func is above and call.args else None
            if name is None:
                return None
            needed = above.attr == "pop" and len(call.args) == 1
            found[name] = found.get(name, False) or needed
        elif isinstance(above, ast.Compare) and node in above.comparators and (name := _text(above.left)) is not None:
            asked.add(name)
            found.setdefault(name, False)
        else:
            return None
    return {name: needed and name not in asked for name, needed in found.items()}


def _source(function: Callable[..., Any]) -> ast.AST | None:
    """The definition of a function, if its source can be read as one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, (ast.FunctionDef, ast.AsyncFunctionDef)) else None


def _text(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def needed_columns(found: Iterable[Reads]) -> tuple[list[str], bool]:
    """The columns that functions read together, and whether one of them may read any."""
    found = list(found)
    names = dict.fromkeys(name for each in found for name in (*each.needs, *each.may))
    return list(names), any(each.everything for each in found)
