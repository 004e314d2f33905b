"""Conversations under the names and in the nesting of other tools, and what stands beside them."""

from __future__ import annotations

from tests.helpers.peers import File, a, g, h, u

UNUSED = "column '{}' is not used"
SAID = "u:q | a:r | u:p"
CALLED = "turn with a tool call (tool_calls) is not learned"
TURNS = "if its texts are turns of user and assistant"

FILES = {
    "capybara": File(
        [{"source": "s", "conversation": [{"input": "q", "output": "r"}, {"input": "p", "output": "b"}]}],
        [(SAID, "b", None)],
        unread=("source",),
    ),
    "lima": File(
        [{"conversations": ["q", "b"], "source": "s"}, {"conversations": ["q", "r", "p", "b"], "source": "s"}],
        [("u:q", "b", None), (SAID, "b", None)],
        unread=("source",),
    ),
    "pairs of texts as turns": File([{"conversations": [["q", "r"], ["p", "b"]]}], [(SAID, "b", None)]),
    "messages that are JSON texts": File(
        [{"messages": ['{"role": "user", "content": "q"}', '{"role": "assistant", "content": "b"}']}],
        [("u:q", "b", None)],
    ),
    "messages as datasets gives them": File(
        [{"messages": {"role": ["user", "assistant"], "content": ["q", "b"]}}], [("u:q", "b", None)]
    ),
    "xtuner": File(
        [{"conversation": [{"system": "S", "input": "q", "output": "b"}]}], [("s:S | u:q", "b", None)]
    ),
    "xtuner turn without loss": File(
        [{"conversation": [{"input": "q", "output": "r", "output_with_loss": False}, {"input": "p", "output": "b"}]}],
        [(SAID, "b", None)],
        ("turn with loss=False is not learned",),
    ),
    "swift loss_scale of a turn": File(
        [{"messages": [u("q"), a("r", loss_scale=0.0), u("p"), a("b", loss_scale=1.0)]}],
        [(SAID, "b", None)],
        ("turn with loss_scale=0.0 is not learned",),
    ),
    "swift toolbench": File(
        [{"conversations": [u("q"), a("Thought: t Action: f Action Input: {}"), {"role": "tool", "content": "1"},
        a("b")]}],
        [("u:q | a:Thought: t Action: f Action Input: {} | t:1", "b", None)],
    ),
    "toolace": File(
        [{"system": "S", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "[f(x=1)]"},
         {"from": "tool", "value": "1"}, {"from": "assistant", "value": "b"}]}],
        [("s:S | u:q | a:[f(x=1)] | t:1", "b", None)],
    ),
    "hermes function calling": File(
        [{"conversations": [h("q"), g('<tool_call>\n{"name": "f"}\n</tool_call>'), {"from": "tool", "value": "1"},
        g("b")], "category": "c"}],
        [('u:q | a:<tool_call>\n{"name": "f"}\n</tool_call> | t:1', "b", None)],
        unread=("category",),
    ),
    "llama-factory function_call": File(
        [{"conversations": [h("q"), {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
         {"from": "observation", "value": "1"}, g("b")]}],
        [("u:q | a: | t:1", "b", None)],
        (CALLED,),
    ),
    "xlam": File(
        [{"id": 1, "query": "q", "answers": '[{"name": "f", "arguments": {}}]', "tools": '[{"name": "f"}]'}],
        [("u:q", None, None)],
        refused="answers holds mappings without a text (they have name, arguments); --columns answers= leaves",
        hint="answers=",
    ),
    "trl completion of several turns": File(
        [{"prompt": [u("q")], "completion": [a("r"), u("p"), a("b")]}], [(SAID, "b", None)]
    ),
    "trl completion with a call": File(
        [{"prompt": [u("q")], "completion": [a("", tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]),
         {"role": "tool", "name": "f", "content": "1"}, a("b")]}],
        [("u:q | a: | t:1", "b", None)],
        (CALLED,),
    ),
    "pair of several turns after the prompt": File(
        [{"prompt": [u("q")], "chosen": [a("r"), u("p"), a("b")], "rejected": [a("r"), u("p"), a("c")]}],
        refused="chosen has several turns after the prompt; put all but the last into the prompt",
    ),
    "openrlhf messages in input and output": File([{"input": [u("q")], "output": [a("b")]}], [("u:q", "b", None)]),
    "gemini": File(
        [{"systemInstruction": {"role": "system", "parts": [{"text": "S"}]},
          "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "b"}]}]}],
        [("s:S | u:q", "b", None)],
    ),
    "bedrock": File(
        [{"schemaVersion": "v", "system": [{"text": "S"}], "messages": [u([{"text": "q"}]), a([{"text": "b"}])]}],
        [("s:S | u:q", "b", None)],
        unread=("schemaVersion",),
    ),
    "openai responses": File(
        [{"input": [u([{"type": "input_text", "text": "q"}])], "output": [a([{"type": "output_text", "text": "b"}])]}],
        [("u:q", "b", None)],
    ),
    "messages in instruction and output": File(
        [{"instruction": [u("q")], "output": [a("b")]}], [("u:q", "b", None)]
    ),
    "vertex": File([{"input_text": "q", "output_text": "b"}], [("u:q", "b", None)]),
    "cohere": File(
        [{"messages": [{"role": "User", "content": "q"}, {"role": "Chatbot", "content": "b"}]}], [("u:q", "b", None)]
    ),
    "messages with a text": File(
        [{"messages": [{"role": "user", "text": "q"}, {"role": "assistant", "text": "b"}]}], [("u:q", "b", None)]
    ),
    "messages without a role": File(
        [{"messages": [{"speaker": "user", "content": "q"}]}],
        refused="messages (message 1) has no role (it has speaker, content); write it as {role, content}",
    ),
    "a dialogue with names of its own": File(
        [{"id": 1, "dialog": [{"speaker": "A", "text": "q"}]}],
        refused="has the columns 'id', 'dialog', which fit no known shape",
    ),
    "a transcript in an unknown column": File(
        [{"transcript": "Human: q\n\nAssistant: b", "mood": "t"}],
        [("u:q", "b", None)],
        refused=f"has the columns 'transcript', 'mood', which fit no known shape; name them with --columns messages="
        f"transcript {TURNS}",
        hint="messages=transcript",
    ),
    "verl, question inside extra_info": File(
        [{"extra_info": {"question": "q", "answer": "b"}, "data_source": "s"}],
        refused="has its columns inside 'extra_info' (question, answer); write them as columns of their own",
    ),
    "p3 tokens": File(
        [{"inputs": [1, 2], "targets": [3]}],
        refused="prompt holds numbers (tokens?), neither text nor messages; give the texts",
    ),
    "question with a column for each choice": File(
        [{"question": "q", "A": "x", "B": "y", "C": "z", "D": "v", "answer": "B"}],
        refused="holds a question with choices (A, B, C), which are in no prompt",
    ),
    "hellaswag": File(
        [{"ctx": "q", "endings": ["b", "c"], "label": "1"}], refused="holds a question with choices (endings)",
    ),
    "infinity-instruct": File(
        [{"id": 1, "conversations": [h("q"), g("b")], "label": {"ability_en": ["x"]}}],
        [("u:q", "b", None)],
        (UNUSED.format("label"),),
        ("id",),
    ),
    "medical-o1": File(
        [{"Question": "q", "Complex_CoT": "t", "Response": "b"}], [("u:q", "b", None)],
        (UNUSED.format("Complex_CoT"),)
    ),
    "natural instructions": File(
        [{"definition": "Add.", "inputs": "q", "targets": "b"}], [("u:q", "b", None)],
        (UNUSED.format("definition"),)
    ),
    "self-instruct": File(
        [{"instruction": "q", "instances": [{"input": "", "output": "b"}]}], [("u:q", None, None)],
        (UNUSED.format("instances"),)
    ),
    "hc3": File(
        [{"question": "q", "human_answers": ["b"], "chatgpt_answers": ["c"]}], [("u:q", None, None)],
        (UNUSED.format("human_answers"), UNUSED.format("chatgpt_answers"))
    ),
    "deepmath": File(
        [{"question": "q", "final_answer": "7", "r1_solution_1": "b", "r1_solution_2": "c"}], [("u:q", None, None)],
        (UNUSED.format("final_answer"), UNUSED.format("r1_solution_1"), UNUSED.format("r1_solution_2")),
    ),
    "mbpp": File(
        [{"text": "q", "code": "b", "test_list": ["t"]}], [("", None, None)],
        (UNUSED.format("code"), UNUSED.format("test_list")),
    ),
    "swe trajectories": File(
        [{"messages": [u("q"), a("b")], "resolved": False}], [("u:q", "b", None)], (UNUSED.format("resolved"),)
    ),
}  # fmt: skip
