"""Two answers and a vote between them."""

from __future__ import annotations

from typing import Any

from tests.helpers.peers import File, a, u

UNUSED = "column '{}' is not used"


def vote(winner: Any) -> dict[str, Any]:
    return {
        "question_id": "1", "model_a": "m", "model_b": "n", "winner": winner, "judge": "j", "turn": 1,
        "conversation_a": [u("q"), a("b")], "conversation_b": [u("q"), a("c")],
    }  # fmt: skip


def choice(better: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": "q", "response_0": "b", "response_1": "c", "better_response_id": better, **more}


FILES = {
    "arena": File(
        [vote("model_a"), vote("model_b"), vote("tie"), vote("tie (bothbad)")],
        [("u:q", "b", "c"), ("u:q", "c", "b")],
        unread=("question_id", "model_a", "model_b", "judge", "turn"),
    ),
    "arena with an unknown winner": File(
        [vote("gpt")], refused="winner is 'gpt', neither conversation_a nor conversation_b nor a tie",
    ),
    "arena without a vote": File(
        [vote("model_a"), vote(None)], [("u:q", "b", "c")], ("two answers without a judgement are left out",),
        ("question_id", "model_a", "model_b", "judge", "turn"),
    ),
    "arena in a table of texts": File(
        [{"id": 1, "prompt": '["q","p"]', "response_a": '["r","b"]', "response_b": '["r","c"]', "winner_model_a": 0,
          "winner_model_b": 1, "winner_tie": 0}],
        [("u:q | a:r | u:p", "c", "b")],
        ("lists of questions and answers written as text", UNUSED.format("winner_tie")),
        ("id",),
    ),
    "pku-saferlhf": File(
        [choice(1, is_response_0_safe=True, is_response_1_safe=False, safer_response_id=0)],
        [("u:q", "c", "b")],
        (UNUSED.format("is_response_0_safe"), UNUSED.format("is_response_1_safe"),
        UNUSED.format("safer_response_id")),
    ),
    "pku-saferlhf, the safer": File(
        [choice(1, safer_response_id=0)], [("u:q", "b", "c")], (UNUSED.format("better_response_id"),),
        columns="winner=safer_response_id",
    ),
    "arena of several turns": File(
        [vote("model_a") | {name: [u("q"), a(x), u("p"), a(y)] for name, x, y in
                            (("conversation_a", "1", "b"), ("conversation_b", second, "c"))} for second in ("1",
                            "2")],
        [("u:q | a:1 | u:p", "b", "c")],
        ("two answers that differ before their last turn are left out",),
        ("question_id", "model_a", "model_b", "judge", "turn"),
    ),
    "a judge's verdicts": File(
        [{"question": "q", "answer_a": "b", "answer_b": "c", "winner": winner} for winner in ("[[A]]", "[[B]]",
        "[[C]]")],
        [("u:q", "b", "c"), ("u:q", "c", "b")],
    ),
    "a preference in words": File(
        [{"prompt": "q", "response_a": "b", "response_b": "c", "preference": "B"}], [("u:q", "c", "b")]
    ),
    "a preference by number": File(
        [{"prompt": "q", "response_1": "b", "response_2": "c", "preference": n} for n in (1, 2)],
        [("u:q", "b", "c"), ("u:q", "c", "b")],
    ),
    "a label of two answers": File(
        [{"prompt": "q", "response_0": "b", "response_1": "c", "label": 1}], [("u:q", "c", "b")],
    ),
    "a label of two answers that could mean either": File(
        [{"prompt": "q", "response_a": "b", "response_b": "c", "label": 1}],
        [("u:q", "c", "b")],
        refused="has two answers (response_a, response_b) and no column known to say which is better",
        hint="winner=label",
    ),
    "responses a and b": File(
        [{"prompt": "q", "response_a": "b", "response_b": "c", "winner": "B"}], [("u:q", "c", "b")]
    ),
    "responses 1 and 2": File(
        [{"prompt": "q", "response_1": "b", "response_2": "c", "preferred": 2.0}], [("u:q", "c", "b")]
    ),
    "scores of two answers": File(
        [{"question": "q", "answer_0": "b", "answer_1": "c", "score_0": first,
        "score_1": 0.5} for first in (-0.5, 0.5)],
        [("u:q", "c", "b")],
    ),
    "two answers without a verdict": File(
        [{"prompt": "q", "response_a": "b", "response_b": "c", "verdict": "a"}],
        [("u:q", "b", "c")],
        refused="has two answers (response_a, response_b) and no column known to say which is better",
        hint="winner=verdict",
    ),
    "shp": File(
        [{"history": "q", "human_ref_A": "c", "human_ref_B": "b", "labels": 0, "score_A": 1, "score_B": 2}],
        [("u:q", "b", "c")]
    ),
    "webgpt": File(
        [{"question": {"full_text": "q"}, "quotes_0": {}, "answer_0": "c", "score_0": -1, "quotes_1": {},
        "answer_1": "b", "score_1": 1}],
        [("u:q", "b", "c")],
    ),
    "summarize from feedback": File(
        [{"info": {"title": "T", "post": "P"}, "summaries": [{"text": "c"}, {"text": "b"}], "choice": 1}],
        [("u:Summarize this text.\n\nTitle: T\n\nP", "b", "c")],
    ),
    "answers with scores": File(
        [{"prompt": "q", "responses": ["c", "b"], "scores": [0.1, "0.9"]}], [("u:q", "b", "c")],
    ),
    "answers with ratings": File(
        [{"instruction": "q", "generations": ["c", "b"], "rating": [1, 2]}], [("u:q", "b", "c")],
    ),
    "answers, the best first": File([{"prompt": "q", "answers": ["b", "c"]}], [("u:q", "b", "c")]),
    "answers that nothing ranks": File(
        [{"prompt": "q", "responses": ["b", "c"]}],
        [("u:q", None, None)],
        ("column 'responses' is not used: nothing says which of its answers is better",),
    ),
    "answers that the user ranks": File(
        [{"prompt": "q", "responses": ["b", "c"]}], [("u:q", "b", "c")], columns="answers=responses",
    ),
    "answers with scores written as text": File(
        [{"prompt": "q", "responses": '["c", "b"]', "scores": "[1, null]"}, {"prompt": "p",
        "responses": "['b', 'c']", "scores": "[2, 1]"}],
        [("u:p", "b", "c")],
        ("column 'responses': list written as text", "column 'scores': list written as text",
        "answer without a score"),
    ),
    "answers with scores that are words": File(
        [{"prompt": "q", "responses": ["b", "c"], "scores": ["good", "bad"]}],
        refused="scores is 'good', not a number"
    ),
}  # fmt: skip
