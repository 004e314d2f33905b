"""Well-known datasets, as local copies of them have their rows."""

from __future__ import annotations

from typing import Any

from tests.helpers.peers import File, a, s, u

TALK = [u("q"), a("r"), u("p")]
SAID = "u:q | a:r | u:p"
UNUSED = "column '{}' is not used"


def rated(text: str, score: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "response": text,
        "overall_score": score,
        "critique": "hm",
        "custom_system_prompt": "Be kind.",
    }


FIELDS = ("field 'critique' of answers", "field 'custom_system_prompt' of answers")
ATTRIBUTES = ("correctness", "coherence", "complexity", "verbosity")


def helpsteer(prompt: str, text: str, helpfulness: int) -> dict[str, Any]:
    return {"prompt": prompt, "response": text, "helpfulness": helpfulness, **dict.fromkeys(ATTRIBUTES, 2)}


FILES = {
    "ultrafeedback": File(
        [{"source": "s", "instruction": "q", "models": ["m"], "correct_answers": ["None"],
        "incorrect_answers": ["None"],
          "completions": [rated("c", 3.0), rated("b", 8.0), rated("d", "N/A")]}],
        [("u:q", "b", "c")],
        (*FIELDS, "answer without a score is left out", UNUSED.format("correct_answers"),
        UNUSED.format("incorrect_answers")),
        ("models", "source"),
    ),
    "ultrafeedback_binarized": File(
        [{"prompt": "q", "prompt_id": "1", "chosen": [u("q"), a("b")], "rejected": [u("q"), a("c")],
          "messages": [u("q"), a("b")], "score_chosen": score, "score_rejected": 5.0} for score in (8.0, 5.0)],
        [("u:q", "b", "c")],
        (),
        ("prompt_id",),
    ),
    "ultrafeedback_binarized of several turns": File(
        [{"prompt": "p", "chosen": [*TALK, a("b")], "rejected": [*TALK, a("c")]}], [(SAID, "b", "c")]
    ),
    "ultrafeedback-binarized-preferences-cleaned": File(
        [{"source": "s", "prompt": "q", "chosen": [u("q"), a("b")], "chosen-rating": 5.0, "chosen-model": "m",
          "rejected": [u("q"), a("c")], "rejected-rating": 3.75, "rejected-model": "n"}],
        [("u:q", "b", "c")],
        unread=("source", "chosen-model", "rejected-model"),
    ),
    "ultrafeedback-binarized-preferences": File(
        [{"instruction": "q", "chosen_response": "b", "rejected_response": "c", "chosen_avg_rating": 4.0,
        "rejected_avg_rating": r}
         for r in (5.0, 3.5)],
        [("u:q", "b", "c")],
        ("pair whose scores contradict it",),
    ),
    "helpsteer2": File(
        [helpsteer("q", "c", 1), helpsteer("q", "b", 4), helpsteer("p", "d", 3)],
        [("u:q", "b", "c"), ("u:p", None, None)],
        ("answer with a score, or without one, that no answer", *map(UNUSED.format, ATTRIBUTES)),
    ),
    "helpsteer2, every answer": File(
        [helpsteer("q", "c", 1), helpsteer("q", "b", 4)],
        [("u:q", "c", None), ("u:q", "b", None)],
        (UNUSED.format("helpfulness"), *map(UNUSED.format, ATTRIBUTES)),
        columns="score=",
    ),
    "helpsteer2 preference": File(
        [{"prompt": "q", "response_1": "b", "response_2": "c", "preference_strength": strength,
        "preference_statement": "t"}
         for strength in (-1, 2, 0)],
        [("u:q", "b", "c"), ("u:q", "c", "b")],
        ("the strength of a preference is not used", UNUSED.format("preference_statement")),
    ),
    "helpsteer3": File(
        [{"domain": "code", "language": "python", "context": TALK, "response1": "c", "response2": "b",
          "overall_preference": 1, "individual_preference": [{"score": 1}]}],
        [(SAID, "b", "c")],
        (UNUSED.format("individual_preference"),),
        ("domain", "language"),
    ),
    "skywork-reward-preference": File(
        [{"chosen": [u("q"), a("b")], "rejected": [u("q"), a("c")], "source": "s"}], [("u:q", "b",
        "c")], unread=("source",)
    ),
    "tulu 3": File(
        [{"id": "1", "messages": [s("S"), *TALK, a("b")], "source": "s"}], [(f"s:S | {SAID}",
        "b", None)], unread=("id", "source")
    ),
    "tulu 3 preference": File(
        [{"id": "1", "source": "s", "prompt": "q", "chosen": [u("q"), a("b")], "rejected": [u("q"), a("c")],
          "chosen_rating": 5.0, "rejected_rating": 2.0, "chosen_model": "m", "rejected_model": "n"}],
        [("u:q", "b", "c")],
        unread=("id", "source", "chosen_model", "rejected_model"),
    ),
    "a system turn that only the answers have": File(
        [{"prompt": "q", "chosen": [s("S"), u("q"), a("b")], "rejected": [s("S"), u("q"), a("c")]}], [("s:S | u:q",
        "b", "c")]
    ),
    "capybara-preferences": File(
        [{"source": "s", "conversation": [{"input": "q", "output": "r"}], "messages": [*TALK, a("b")],
        "generations": ["c", "d"],
          "rewards": [1.0, 2.0], "reward_model": "m", "chosen_reward": 2.0, "chosen": [*TALK, a("b")],
          "rejected_reward": 1.0, "rejected": [*TALK, a("c")]}],
        [(SAID, "b", "c")],
        (UNUSED.format("conversation"), UNUSED.format("generations"), UNUSED.format("rewards"),
        UNUSED.format("reward_model")),
        ("source",),
    ),
    "orca dpo pairs": File(
        [{"system": "S", "question": "q", "chosen": "b", "rejected": "c", "rating": [9, 8], "status": "unchanged",
          "chosen_score": 9.0, "in_gsm8k_train": False},
         {"system": "S", "question": "p", "chosen": "b", "rejected": "c", "rating": [9, 9], "status": "tie",
          "chosen_score": 9.0, "in_gsm8k_train": False}],
        [("s:S | u:q", "b", "c")],
        (UNUSED.format("rating"),),
        ("in_gsm8k_train",),
    ),
    "nectar": File(
        [{"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [
            {"answer": "b", "model": "m", "rank": 1.0}, {"answer": "c", "model": "n", "rank": 2.0}],
          "turns": 1, "num_responses": 2, "source": ["s"], "good_natured": True}],
        [("u:q", "b", "c")],
        unread=("turns", "num_responses", "source", "good_natured"),
    ),
    "hh-rlhf": File(
        [{"chosen": "\n\nHuman: q\n\nAssistant: b", "rejected": "\n\nHuman: q\n\nAssistant: c"}], [("u:q", "b", "c")]
    ),
    "rlhf-reward-datasets": File(
        [{"prompt": "\n\nHuman: q\n\nAssistant: r\n\nHuman: p\n\n", "chosen": "Assistant: b",
        "rejected": "Assistant: c"}],
        [(SAID, "b", "c")],
    ),
    "two system turns that differ": File(
        [{"prompt": [s("S"), u("q")], "chosen": [s("T"), u("q"), a("b")], "rejected": [s("T"), u("q"), a("c")]}],
        refused="prompt and chosen have different system turns",
    ),
    "tokens beside the text": File(
        [{"prompt": "q", "chosen": "b", "rejected": "c", "input_ids": [1]}], [("u:q", "b", "c")],
        (UNUSED.format("input_ids"),)
    ),
    "rm-static": File(
        [{"prompt": "\n\nHuman: q\n\nAssistant: r\n\nHuman: p\n\nAssistant:", "response": " b", "chosen": " b",
        "rejected": " c"}],
        [(SAID, "b", "c")],
    ),
    "deepspeed-chat on one line": File(
        [{"prompt": " Human: q Assistant:", "chosen": " b", "rejected": " c"}], [("u:q", "b", "c")]
    ),
    "deepspeed-chat on one line, several turns": File(
        [{"prompt": " Human: q Assistant: r Human: p Assistant:", "chosen": " b", "rejected": " c"}], [(SAID, "b",
        "c")]
    ),
    "deepspeed-chat on one line, whole": File(
        [{"chosen": "Human: q Assistant: b", "rejected": "Human: q Assistant: c"}], [("u:q", "b", "c")]
    ),
    "transcripts by lines": File(
        [{"prompt": "Human: q\nAssistant:", "chosen": " b", "rejected": " c"}], [("u:q", "b", "c")],
    ),
    "a question about transcripts": File(
        [{"prompt": "Human: is 'x Assistant: y' well formed?\n\nAssistant:", "chosen": "b", "rejected": "c"}],
        [("u:is 'x Assistant: y' well formed?", "b", "c")],
    ),
    "lmsys-chat and wildchat": File(
        [{"conversation_id": "1", "model": "m", "conversation": [*TALK, a("b")], "turn": 2, "language": "en",
        "redacted": False}],
        [(SAID, "b", None)],
        unread=("conversation_id", "model", "turn", "language", "redacted"),
    ),
    "oasst1": File(
        [{"message_id": "1", "parent_id": None, "message_tree_id": "1", "role": "prompter", "text": "q"},
         {"message_id": "2", "parent_id": "1", "message_tree_id": "1", "role": "assistant", "text": "c", "rank": 1},
         {"message_id": "3", "parent_id": "1", "message_tree_id": "1", "role": "assistant", "text": "b", "rank": 0}],
        [("u:q", "b", "c")],
    ),
    "oasst1 trees": File(
        [{"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": {
            "message_id": "1", "role": "prompter", "text": "q", "replies": [
                {"message_id": "2", "role": "assistant", "text": "c", "rank": 1, "replies": []},
                {"message_id": "3", "role": "assistant", "text": "b", "rank": 0, "replies": []}]}}],
        [("u:q", "b", "c")],
    ),
    "guanaco": File(
        [{"text": "### Human: q### Assistant: b"}], [("", None, None)],
        ("text with a chat template's mark ### Human:",)
    ),
    "kto-mix": File(
        [{"prompt": [u("q")], "completion": [a("b")], "label": True}, {"prompt": [u("q")], "completion": [a("c")],
        "label": False}],
        [("u:q", "b", "c")],
    ),
    "no_robots": File(
        [{"prompt": "q", "prompt_id": "1", "messages": [u("q"), a("b")], "category": "Chat"}], [("u:q", "b", None)],
        unread=("prompt_id", "category"),
    ),
    "beavertails": File(
        [{"prompt": "q", "response": "c", "category": {}, "is_safe": False}, {"prompt": "p", "response": "b",
        "is_safe": True}],
        [("u:q", None, "c"), ("u:p", "b", None)],
        ("answer labelled false without",),
        ("category",),
    ),
    "openmathinstruct 1": File(
        [{"question": "q", "expected_answer": "7", "predicted_answer": "8", "generated_solution": "c",
        "is_correct": False},
         {"question": "q", "expected_answer": "7", "predicted_answer": "7", "generated_solution": "b",
         "is_correct": True}],
        [("u:q", "b", "c")],
        (UNUSED.format("expected_answer"), UNUSED.format("predicted_answer")),
    ),
    "answers with a rank in each row": File(
        [{"prompt": "q", "response": "c", "rank": 2}, {"prompt": "q", "response": "b", "rank": 1}], [("u:q", "b",
        "c")]
    ),
    "stack exchange preferences": File(
        [{"qid": 1, "question": "q", "answers": [{"text": "c", "pm_score": 1, "selected": False, "author": "x"},
                                                 {"text": "b", "pm_score": 4, "selected": True, "author": "y"}]}],
        [("u:q", "b", "c")],
        unread=("qid",),
    ),
    "answers that are mappings without a judgement": File(
        [{"question": "q", "answers": [{"text": "c", "selected": True}]}],
        refused="answers holds mappings without a score or a rank (they have text, selected)",
    ),
    "openai preference": File(
        [{"input": {"messages": [s("S"), u("q")], "tools": []}, "preferred_output": [a("b")],
        "non_preferred_output": [a("c")]}],
        [("s:S | u:q", "b", "c")],
    ),
    "helpsteer3 edits": File(
        [{"context": TALK, "original_response": "c", "edited_response": "b"}], [(SAID, None, None)],
        (UNUSED.format("original_response"), UNUSED.format("edited_response")),
    ),
    "user and assistant": File([{"User": "q", "Assistant": "b", "system_message": "S"}], [("s:S | u:q", "b", None)]),
    "pairs in columns of messages": File(
        [{"chosen_messages": [u("q"), a("b")], "rejected_messages": [u("q"), a("c")]}], [("u:q", "b", "c")]
    ),
    "messages and a response": File(
        [{"messages": [*TALK], "response": "b"}, {"messages": [u("q"), a("b")], "response": "b"},
         {"messages": [u("q"), a("b")], "response": "x"}],
        [(SAID, "b", None), ("u:q", "b", None), ("u:q", "b", None)],
        ("a response beside messages that end with one is not used",),
    ),
    "an instruction alone": File([{"instruction": "q", "input": "x"}], [("u:q\n\nx", None, None)]),
    "flan": File([{"inputs": "q", "targets": "b", "task": "t"}], [("u:q", "b", None)], unread=("task",)),
    "human and assistant": File([{"human": "q", "assistant": "b"}], [("u:q", "b", None)]),
    "question, answer and rejected": File([{"question": "q", "answer": "7", "rejected": "8"}], [("u:q", "7", "8")]),
    "math-shepherd": File(
        [{"input": "q Step 1: add \u043a\u0438", "label": "q Step 1: add +", "task": "GSM8K"}],
        refused="has labels for the steps of one answer (stepwise supervision), which cannot be ranked",
    ),
    "prm in a text": File(
        [{"input": "q <step>", "value": ["+", "-"]}],
        refused="has labels for the steps of one answer (stepwise supervision)"
    ),
    "nemo comparisons": File(
        [{"text": "User: q\nAssistant: b"}], [("", None, None)], ("text that is a conversation is plain text here",)
    ),
    "ultrachat, raw": File(
        [{"id": "1", "data": ["q", "b"]}],
        [("u:q", "b", None)],
        refused="has the columns 'id', 'data', which fit no known shape; name them with --columns messages=data if",
        hint="messages=data",
    ),
}  # fmt: skip
