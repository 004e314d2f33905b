"""Rows that cannot be meant as they are written, and columns whose name has another meaning than ours."""

from __future__ import annotations

from tests.helpers.peers import File, a, s, u

UNUSED = "column '{}' is not used"
PAIR = {"prompt": "q", "chosen": "b", "rejected": "c"}

FILES = {
    "label that is a class": File(
        [{"instruction": "q", "output": "b", "label": "math"}],
        [("u:q", "b", None)],
        refused="label is 'math', neither true nor false; --columns label= leaves the column out",
        hint="label=",
    ),
    "label that is a grade": File(
        [{"prompt": "q", "completion": "b", "label": 4}, {"prompt": "q", "completion": "c", "label": 2}],
        [("u:q", "b", "c")],
        refused="label is 4, neither true nor false; --columns score=label takes numbers as scores",
        hint="score=label",
    ),
    "label that is null": File([{"prompt": "q", "completion": "b", "label": None}, {"prompt": "q",
    "completion": "b", "label": True}],
                               refused="label is empty (null), neither true nor false"),
    "score that is a word": File(
        [{"prompt": "q", "completion": "b", "score": "good"}], refused="score is 'good', not a number",
    ),
    "score that is missing": File(
        [{"prompt": "q", "completion": "b", "score": 2}, {"prompt": "q", "completion": "c", "score": 1},
         {"prompt": "q", "completion": "d", "score": "N/A"}, {"prompt": "q", "completion": "e", "score": None}],
        [("u:q", "b", "c"), ("u:q", None, None), ("u:q", None, None)],
        ("answer with a score, or without one, that no answer",),
    ),
    "margin that is a word": File([PAIR | {"margin": "wide"}], refused="margin is 'wide', not a number"),
    "chosen that is a number": File(
        [{"prompt": "q", "chosen": 0, "rejected": 1, "responses": ["b", "c"]}],
        refused="chosen is a number, not text",
    ),
    "messages that is a number": File(
        [{"messages": 3, "text": "t"}], refused="messages is a number, not a list of messages",
    ),
    "history that is text": File(
        [{"query": "q", "response": "b", "history": "none"}], refused="history is not a list of [question, answer]",
    ),
    "system that is a list": File(
        [{"prompt": "q", "response": "b", "system": ["S"]}], refused="system is a list, not text",
    ),
    "answers that is a mapping": File(
        [{"context": "A fig.", "question": "q", "answers": {"text": ["b"], "answer_start": [0]}}],
        refused="answers is a mapping, not a list of texts; --columns answers= leaves the column out"
    ),
    "steps that are answers of their own": File(
        [{"question": "q", "completions": ["b", "c"], "labels": [True, False]}],
        [("u:q", "b", "c")],
        refused="has labels for the steps of one answer (stepwise supervision), which cannot be ranked; if",
        hint="prompt=question,answers=completions,scores=labels",
    ),
    "two system turns": File(
        [{"messages": [s("S"), s("T"), u("q"), a("b")]}], refused="there are two system turns (system, system, user)",
    ),
    "a system turn in the middle": File(
        [{"messages": [u("q"), a("r"), s("S"), u("p"), a("b")]}], refused="roles are out of order (user,",
    ),
    "begins with the assistant": File(
        [{"messages": [a("r"), u("q"), a("b")]}], refused="messages begins with an assistant turn, not with a user's",
    ),
    "two questions in a row": File(
        [{"messages": [u("q"), u("p"), a("b")]}], refused="roles are out of order (user, user",
    ),
    "a result without a call": File(
        [{"messages": [u("q"), {"role": "tool", "content": "x"}, a("b")]}],
        refused="roles are out of order (user, tool): a tool's result without a call",
    ),
    "steps with one column of labels": File(
        [{"prompt": "q", "completions": ["b", "c"], "label": [True, False]}],
        [("u:q", "b", "c")],
        refused="has labels for the steps of one answer (stepwise supervision), which cannot be ranked; if",
        hint="prompt=prompt,answers=completions,scores=label",
    ),
    "prompt that is a mapping": File(
        [{"prompt": {"text": "q"}, "completion": "b"}],
        refused="prompt is a mapping without a role, neither text nor messages"
    ),
    "no turn at all": File([{"messages": []}], refused="messages has no turn"),
    "half a pair": File([PAIR, PAIR | {"rejected": None}], refused="rejected is empty (null), not text"),
    "rows of two shapes": File([PAIR, {"messages": [u("q"), a("b")]}], [("u:q", "b", "c"), ("u:q", "b", None)]),
    "unknown columns": File(
        [{"promt": "q", "reply": "b"}],
        [("u:q", "b", None)],
        refused="has the columns 'promt', 'reply', which fit no known shape ('promt'; did you mean 'prompt')",
        hint="prompt=promt,chosen=reply",
    ),
    "two answers": File(
        [{"prompt": "q", "completion": "b", "response": "c"}], [("u:q", "b", None)], (UNUSED.format("response"),)
    ),
    "system beside columns that are named": File(
        [{"q": "q", "b": "b", "w": "c", "system": "S", "input": "x"}], [("s:S | u:q", "b", "c")],
        (UNUSED.format("input"),),
        columns="prompt=q,chosen=b,rejected=w",
    ),
    "input that is named": File(
        [{"q": "q", "b": "b", "x": "x"}], [("u:q\n\nx", "b", None)], columns="prompt=q,chosen=b,input=x",
    ),
    "history beside whole conversations": File(
        [{"chosen": [u("q"), a("b")], "rejected": [u("q"), a("c")], "history": [["e", "f"]]}], [("u:q", "b", "c")],
        (UNUSED.format("history"),)
    ),
    "text with a label": File([{"text": "t", "label": 1}], [("", None, None)], (UNUSED.format("label"),)),
}  # fmt: skip
