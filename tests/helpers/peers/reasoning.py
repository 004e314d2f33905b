"""Results to compare with, whole solutions, thoughts and calls of tools."""

from __future__ import annotations

from tests.helpers.peers import File, a, g, h, s, u

UNUSED = "column '{}' is not used"
SOLUTION = "There are 3 figs and 4 pears, so 3 + 4 = <<3+4=7>>7 pieces.\n#### 7"
CALL = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
RESULTS = "column '{}' is not used: it holds results to compare with; --columns chosen={} learns them as answers"

FILES = {
    "gsm8k": File([{"question": "q", "answer": SOLUTION}], [("u:q", SOLUTION, None)]),
    "math": File(
        [{"problem": "q", "solution": "We add both numbers and get \\boxed{7}.", "answer": "7", "level": "Level 1",
        "type": "Algebra"}],
        [("u:q", "We add both numbers and get \\boxed{7}.", None)],
        (RESULTS.format("answer", "answer"),),
        ("level", "type"),
    ),
    "short answers": File(
        [{"question": "q", "answer": "7"}], [("u:q", None, None)], (RESULTS.format("answer", "answer"),),
    ),
    "short answers that are learned": File(
        [{"question": "q", "answer": "7"}], [("u:q", "7", None)], columns="chosen=answer",
    ),
    "jeopardy": File(
        [{"question": "q", "category": "c", "answer": "Paris"}], [("u:q", None, None)], (RESULTS.format("answer",
        "answer"),), ("category",)
    ),
    "verl": File(
        [{"data_source": "gsm8k", "prompt": [u("q")], "ability": "math", "reward_model": {"style": "rule",
        "ground_truth": "7"},
          "extra_info": {"split": "train", "index": 0}}],
        [("u:q", None, None)],
        (UNUSED.format("data_source"), UNUSED.format("reward_model")),
        ("ability", "extra_info"),
    ),
    "open-instruct": File(
        [{"messages": [u("q")], "ground_truth": "7", "dataset": "gsm8k"}], [("u:q", None, None)],
        (UNUSED.format("ground_truth"), UNUSED.format("dataset")),
    ),
    "openr1": File(
        [{"problem": "q", "solution": "The sum of the two is equal to 7.", "answer": "7",
        "generations": ["<think>t</think>7", "8"],
          "correctness_math_verify": [True, False], "messages": [u("q"), a("<think>t</think>7")], "uuid": "1"}],
        [("u:q", "<think>t</think>7", None)],
        (UNUSED.format("solution"), "column 'answer' is not used", "column 'generations' is not used",
         UNUSED.format("correctness_math_verify")),
        ("uuid",),
    ),
    "openthoughts": File(
        [{"system": "S", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant",
        "value": "<think>t</think>b"}]}],
        [("s:S | u:q", "<think>t</think>b", None)],
    ),
    "openmathinstruct": File(
        [{"problem": "q", "generated_solution": "b", "expected_answer": "7", "problem_source": "s"}], [("u:q",
        "b", None)],
        (UNUSED.format("expected_answer"),), ("problem_source",),
    ),
    "s1k": File(
        [{"question": "q", "solution": "7", "thinking_trajectories": ["t"], "attempt": "b", "cot_type": "math"}],
        [("u:q", None, None)],
        ("column 'solution' is not used", UNUSED.format("thinking_trajectories")),
        ("attempt", "cot_type"),
    ),
    "thoughts beside the content": File(
        [{"messages": [u("q"), a("b", reasoning_content="t")]}], [("u:q", "b", None)],
    ),
    "thoughts beside a column of contents": File(
        [{"input": "q", "reasoning_content": "t", "content": "b"}], [("u:q", "b", None)],
    ),
    "thoughts in a column": File(
        [{"prompt": "q", "response": "b", "reasoning": "t"}], [("u:q", "b", None)], (UNUSED.format("reasoning"),)
    ),
    "thoughts of a harmony message": File(
        [{"messages": [u("q"), a("b", thinking="t")], "reasoning_effort": "low"}], [("u:q", "b", None)],
    ),
    "thoughts as a part of the content": File(
        [{"messages": [u("q"), a([{"type": "thinking", "thinking": "t"}, {"type": "text",
        "text": "b"}])]}],
        refused="messages (message 2) has a part of the type 'thinking'",
    ),
    "a call at the end": File(
        [{"messages": [u("q"), a(None, tool_calls=CALL)], "tools": CALL}], [("u:q", None, None)],
        ("turn with a tool call",),
    ),
    "prm with a step in each row": File(
        [{"prompt": "q", "completions": ["First.", "Then."], "labels": ["+", "-"]}],
        refused="has labels for the steps of one answer (stepwise supervision)",
    ),
    "a system turn in a list and a column": File(
        [{"system": "T", "messages": [s("S"), u("q"), a("b")]}], [("s:S | u:q", "b", None)],
        ("column 'system' is not used: the messages",)
    ),
    "a question at the end": File(
        [{"conversations": [h("q"), g("b"), h("p")]}], [("u:q | a:b | u:p", None, None), ("u:q", "b", None)]
    ),
}  # fmt: skip
