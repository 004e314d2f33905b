"""What TRL, LLaMA-Factory, ms-swift, OpenRLHF, axolotl and NeMo document."""

from __future__ import annotations

from tests.helpers.peers import File, a, g, h, s, u

TALK = [s("S"), u("q"), a("r"), u("p"), a("b")]
SAID = "s:S | u:q | a:r | u:p"
ASK = "s:S | u:q"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
UNUSED = "column '{}' is not used"

TRL = {
    "trl language modelling": File([{"text": "The sky is blue."}], [("", None, None)]),
    "trl language modelling, conversational": File([{"messages": TALK}], [(SAID, "b", None)]),
    "trl prompt only": File([{"prompt": "q"}], [("u:q", None, None)]),
    "trl prompt only, conversational": File([{"prompt": [s("S"), u("q")]}], [(ASK, None, None)]),
    "trl prompt and completion": File(
        [{"prompt": "The sky is", "completion": " blue."}], [("u:The sky is", " blue.", None)],
    ),
    "trl prompt and completion, conversational": File(
        [{"prompt": [u("q")], "completion": [a("b")]}], [("u:q", "b", None)]
    ),
    "trl preference": File([{"prompt": "q", "chosen": "b", "rejected": "c"}], [("u:q", "b", "c")]),
    "trl preference, conversational": File(
        [{"prompt": [s("S"), u("q")], "chosen": [a("b")], "rejected": [a("c")]}], [(ASK, "b", "c")]
    ),
    "trl preference, implicit prompt": File(
        [{"chosen": "The sky is blue.", "rejected": "The sky is green."}],
        refused="chosen is not a transcript (Human: … Assistant: …) and there is no prompt column",
    ),
    "trl preference, implicit prompt, conversational": File(
        [{"chosen": [*TALK], "rejected": [*TALK[:-1], a("c")]}], [(SAID, "b", "c")]
    ),
    "trl unpaired preference": File(
        [{"prompt": "q", "completion": "b", "label": True}, {"prompt": "q", "completion": "c", "label": False},
         {"prompt": "r", "completion": "d", "label": False}],
        [("u:q", "b", "c"), ("u:r", None, "d")],
        ("answer labelled false without",),
    ),
    "trl unpaired preference, conversational": File(
        [{"prompt": [u("q")], "completion": [a("b")], "label": True},
         {"prompt": [u("r")], "completion": [a("d")], "label": False}],
        [("u:q", "b", None), ("u:r", None, "d")],
        ("answer labelled false without",),
    ),
    "trl stepwise supervision": File(
        [{"prompt": "q", "completions": ["First.", "Then."], "labels": [True, False]}],
        refused="has labels for the steps of one answer (stepwise supervision)",
    ),
    "trl preference with tools and template options": File(
        [{"prompt": "q", "chosen": "b", "rejected": "c", "tools": TOOLS,
        "chat_template_kwargs": {"enable_thinking": True}}],
        [("u:q", "b", "c")],
    ),
    "trl preference with scores": File(
        [{"chosen": [u("q"), a("b")], "rejected": [u("q"), a("c")], "score_chosen": 8.0, "score_rejected": 5.0,
        "id": 1}],
        [("u:q", "b", "c")],
        unread=("id",),
    ),
    "trl grpo with a solution": File(
        [{"prompt": [u("q")], "solution": "4"}], [("u:q", None, None)],
        ("column 'solution' is not used: it holds results",)
    ),
    "trl images": File(
        [{"prompt": [u("q")], "completion": [a("b")], "images": ["a.png"]}],
        refused="has a picture, film or sound (column 'images')",
    ),
    "trl contents in parts": File(
        [{"messages": [u([{"type": "text", "text": "q"}]), a([{"type": "text", "text": "b"}])]}], [("u:q", "b", None)]
    ),
    "trl contents with an image": File(
        [{"messages": [u([{"type": "image"}, {"type": "text", "text": "q"}]), a("b")]}],
        refused="messages (message 1) has a part of the type 'image'",
    ),
}  # fmt: skip

LLAMA_FACTORY = {
    "llama-factory alpaca": File(
        [{"instruction": "i", "input": "x", "output": "b", "system": "S", "history": [["q", "r"]]}],
        [("s:S | u:q | a:r | u:i\n\nx", "b", None)],
    ),
    "llama-factory alpaca preference": File(
        [{"instruction": "i", "input": "", "chosen": "b", "rejected": "c"}], [("u:i", "b", "c")]
    ),
    "llama-factory alpaca preference, older": File(
        [{"instruction": "i", "input": "", "output": ["b", "c"]}], [("u:i", "b", "c")],
    ),
    "llama-factory alpaca kto": File(
        [{"instruction": "i", "input": "x", "output": "b", "kto_tag": True},
         {"instruction": "j", "input": "x", "output": "c", "kto_tag": False}],
        [("u:i\n\nx", "b", None), ("u:j\n\nx", None, "c")],
        ("answer labelled false without",),
    ),
    "llama-factory sharegpt": File(
        [{"conversations": [h("q"), g("r"), h("p"), g("b")], "system": "S", "tools": '[{"name": "f"}]'}], [(SAID,
        "b", None)],
    ),
    "llama-factory sharegpt preference": File(
        [{"conversations": [h("q"), g("r"), h("p")], "chosen": g("b"), "rejected": g("c")}], [("u:q | a:r | u:p",
        "b", "c")]
    ),
    "llama-factory openai preference": File(
        [{"messages": [s("S"), u("q")], "chosen": a("b"), "rejected": a("c")}], [(ASK, "b", "c")],
    ),
    "llama-factory sharegpt kto": File(
        [{"conversations": [h("q"), g("b")], "kto_tag": True}, {"conversations": [h("p"), g("c")], "kto_tag": False}],
        [("u:q", "b", None), ("u:p", None, "c")],
        ("answer labelled false without",),
    ),
    "llama-factory images": File(
        [{"conversations": [h("<image>q"), g("b")], "images": ["a.jpg"]}],
        refused="has a picture, film or sound (column 'images')",
    ),
}  # fmt: skip

SWIFT = {
    "swift messages": File([{"messages": TALK}], [(SAID, "b", None)]),
    "swift sharegpt": File(
        [{"system": "S", "conversation": [{"human": "q", "assistant": "r"}, {"human": "p", "assistant": "b"}]}],
        [(SAID, "b", None)],
    ),
    "swift query and response": File(
        [{"system": "S", "query": "p", "response": "b", "history": [["q", "r"]]}], [(SAID, "b", None)]
    ),
    "swift pre-training": File(
        [{"messages": [a("I love music")]}],
        refused="messages begins with an assistant turn, not with a user's; text without a question"
    ),
    "swift rejected_response": File(
        [{"messages": TALK, "rejected_response": "c", "margin": 0.5}], [(SAID, "b", "c")],
    ),
    "swift rejected_messages": File(
        [{"messages": TALK, "rejected_messages": [*TALK[:-1], a("c")]}], [(SAID, "b", "c")]
    ),
    "swift several rejected responses": File(
        [{"messages": TALK, "rejected_response": ["c", "d"]}], [(SAID, "b", "c"), (SAID, "b", "d")]
    ),
    "swift embedding": File(
        [{"messages": [u("q")], "positive_messages": [[u("b")]], "negative_messages": [[u("c")]]}],
        refused="holds pairs of texts for an embedding (positive_messages)",
    ),
    "swift kto": File(
        [{"messages": TALK, "label": True}, {"messages": [u("x"), a("c")], "label": False}],
        [(SAID, "b", None), ("u:x", None, "c")],
        ("answer labelled false without",),
    ),
    "swift ppo and grpo": File(
        [{"messages": TALK[:4], "solution": "4"}, {"messages": [u("q")], "solution": "5"}],
        [(SAID, None, None), (ASK, "r", None), ("u:q", None, None)],
        ("column 'solution' is not used: it holds results",),
    ),
    "swift classification": File(
        [{"messages": [u("so happy")], "label": 1}, {"messages": [u("sad")], "label": 0}],
        refused="messages has a label and no answer; labels of questions (classification) are not read",
    ),
    "swift several labels": File(
        [{"messages": [u("q"), a("b")], "label": [1, 3]}], refused="label is a list, neither true nor false",
    ),
    "swift audio": File(
        [{"messages": [u("<audio>q"), a("b")], "audios": ["a.mp3"]}],
        refused="has a picture, film or sound (column 'audios')"
    ),
    "swift placeholder without a picture": File(
        [{"messages": [u("<image>q"), a("b")], "images": []}], [("u:<image>q", "b", None)],
        ("text with the placeholder <image>",)
    ),
}  # fmt: skip

OPENRLHF = {
    "openrlhf input and output": File([{"input": "q", "output": "b"}], [("u:q", "b", None)]),
    "openrlhf input of messages": File([{"input": [s("S"), u("q")]}], [(ASK, None, None)]),
    "openrlhf input and label": File(
        [{"input": "q", "label": "42"}], [("u:q", None, None)], (UNUSED.format("label"),),
    ),
    "openrlhf context_messages": File(
        [{"context_messages": [u("q")], "chosen": "b", "rejected": "c"}], [("u:q", "b", "c")],
    ),
    "openrlhf context_messages, conversational": File(
        [{"context_messages": [u("q")], "chosen": [a("b")], "rejected": [a("c")]}], [("u:q", "b", "c")]
    ),
    "openrlhf kto": File(
        [{"instruction": "q", "output": "b", "score": "1"}, {"instruction": "p", "output": "c", "score": "0"}],
        [("u:q", "b", None), ("u:p", None, "c")],
        ("answer labelled false without",),
    ),
    "openrlhf open orca": File(
        [{"system_prompt": "S", "question": "q", "response": "b", "id": "t.1"}], [(ASK, "b", None)], unread=("id",)
    ),
}  # fmt: skip

AXOLOTL = {
    "axolotl chat_template": File([{"conversations": [u("q"), a("b")]}], [("u:q", "b", None)]),
    "conversations of two kinds in a table": File(
        [{"conversations": [{"role": None, "content": None, "from": "human", "value": "q"},
                            {"role": "assistant", "content": "b", "from": None, "value": None}], "images": "[]"}],
        [("u:q", "b", None)],
    ),
    "axolotl pygmalion": File(
        [{"conversations": [{"role": "user", "value": "q"}, {"role": "assistant", "value": "b"}]}], [("u:q",
        "b", None)]
    ),
    "axolotl turn that is not trained on": File(
        [{"conversations": [u("q", train=True), a("b", train=False)]}], [("u:q", None, None)],
        ("turn with train=False",)
    ),
    "axolotl turn of which a part is not trained on": File(
        [{"conversations": [h("q"), g("b") | {"train_detail": [{"begin_offset": 0, "end_offset": 0,
        "train": False}]}]}],
        [("u:q", None, None)],
        ("turn with train=False", "field 'train_detail' of messages is not used"),
    ),
    "axolotl segments": File(
        [{"segments": [{"label": False, "text": "<s>q\n"}, {"label": True, "text": "b</s>"}]}],
        refused="holds segments of text without turns (segments)",
    ),
    "axolotl tokens": File(
        [{"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [-100, 2]}],
        refused="holds tokens (input_ids), not text"
    ),
    "axolotl oasst": File([{"INSTRUCTION": "i", "RESPONSE": "b"}], [("u:i", "b", None)]),
    "axolotl metharme": File([{"prompt": "q", "generation": "b"}], [("u:q", "b", None)]),
    "axolotl gpteacher": File([{"instruction": "i", "input": "x", "response": "b"}], [("u:i\n\nx", "b", None)]),
    "axolotl reflection": File(
        [{"instruction": "i", "input": "", "output": "b", "reflection": "hm", "corrected": "c"}], [("u:i",
        "b", None)],
        (UNUSED.format("reflection"), UNUSED.format("corrected")),
    ),
    "axolotl explainchoice": File(
        [{"question": "q", "choices": ["b", "c"], "solution": "b", "explanation": "for it is so"}],
        refused="holds a question with choices (choices), which are in no prompt",
    ),
    "axolotl context_qa": File(
        [{"context": "A fig is a fruit.", "question": "q", "answer": "It is a fruit that grows on trees."}],
        [("u:q\n\nA fig is a fruit.", "It is a fruit that grows on trees.", None)],
    ),
    "axolotl article and question": File(
        [{"article": "A fig.", "question": "q", "answer": "It is a fruit that grows on trees."}],
        [("u:q\n\nA fig.", "It is a fruit that grows on trees.", None)],
        columns="input=article",
    ),
    "axolotl summarizetldr": File(
        [{"article": "A fig.", "summary": "Fig."}], [("u:A fig.", "Fig.", None)],
        columns="prompt=article,chosen=summary"
    ),
    "axolotl chatml.argilla": File(
        [{"system": "S", "instruction": "q", "chosen_response": "b", "rejected_response": "c"}], [(ASK, "b", "c")]
    ),
    "axolotl chatml.icr": File([{"system": "S", "input": "q", "chosen": "b", "rejected": "c"}], [(ASK, "b", "c")]),
    "axolotl chatml.intel": File(
        [{"system": "S", "question": "q", "chosen": "b", "rejected": "c"}], [(ASK, "b", "c")],
    ),
    "axolotl chatml.ultra": File(
        [{"system": "S", "prompt": "q", "chosen": [u("q"), a("b")], "rejected": [u("q"), a("c")]}], [(ASK, "b", "c")]
    ),
    "axolotl kto user_defined": File(
        [{"system": "S", "prompt": "q", "completion": "b", "label": "true"}], [(ASK, "b", None)]
    ),
    "axolotl kto argilla_chat, two columns": File(
        [{"chosen": [u("q")], "completion": [a("b")], "label": False}], [("u:q", None, "b")],
        ("answer labelled false without",)
    ),
    "axolotl kto argilla_chat": File([{"completion": [u("q"), a("b")], "label": True}], [("u:q", "b", None)]),
}  # fmt: skip

NEMO = {
    "nemo prompt and response": File(
        [{"input": "q", "output": "b", "category": "qa"}], [("u:q", "b", None)], unread=("category",),
    ),
    "nemo dolly": File(
        [{"instruction": "i", "context": "x", "response": "b", "category": "qa"}], [("u:i\n\nx",
        "b", None)], unread=("category",)
    ),
    "nemo chat": File(
        [{"system": "S", "conversations": [{"from": "User", "value": "q", "label": None},
                                           {"from": "Assistant", "value": "b", "label": None}],
          "mask": "User", "type": "VALUE_TO_TEXT"}],
        [(ASK, "b", None)],
        (UNUSED.format("mask"),),
        unread=("type",),
    ),
    "nemo steerlm": File(
        [{"system": "S", "conversations": [{"from": "User", "value": "q", "label": None},
                                           {"from": "Assistant", "value": "b", "label": "quality:0,helpfulness:0"}],
          "mask": "User", "type": "VALUE_TO_TEXT"}],
        refused="messages (message 2) has attributes ('quality:0,helpfulness:0')",
    ),
    "nemo preference": File([{"prompt": "q", "chosen_response": "b", "rejected_response": "c"}], [("u:q", "b", "c")]),
    "nemo preference with rewards": File(
        [{"prompt": "q", "chosen_response": "b", "rejected_response": "c", "chosen_reward": 2, "rejected_reward": 1}],
        [("u:q", "b", "c")],
    ),
    "nemo preference, rendered": File(
        [{"prompt": "<extra_id_0>System\n\n<extra_id_1>User\nq\n<extra_id_1>Assistant\n",
        "chosen_response": "b\n<extra_id_1>",
          "rejected_response": "c\n<extra_id_1>"}],
        [("u:<extra_id_0>System\n\n<extra_id_1>User\nq\n<extra_id_1>Assistant\n", "b\n<extra_id_1>",
        "c\n<extra_id_1>")],
        ("text with a chat template's mark <extra_id_1>",),
    ),
    "nemo-rl ranks": File(
        [{"context": [u("q"), a("r"), u("p")],
          "completions": [{"rank": 1, "completion": [a("c")]}, {"rank": 0, "completion": [a("b")]}]}],
        [("u:q | a:r | u:p", "b", "c")],
    ),
    "nemo-rl math": File(
        [{"problem": "q", "expected_answer": "4"}], [("u:q", None, None)], (UNUSED.format("expected_answer"),),
    ),
}  # fmt: skip

FILES = TRL | LLAMA_FACTORY | SWIFT | OPENRLHF | AXOLOTL | NEMO
