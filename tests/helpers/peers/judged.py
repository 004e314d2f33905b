"""Better and worse answers, labels and preferences under the names that other tools have for them."""

from __future__ import annotations

from typing import Any

from tests.helpers.peers import File, Read, a, u

UNUSED = "column '{}' is not used"
PAIR: list[Read] = [("u:q", "b", "c")]
SCALE = "has two answers and a preference ('preference'), but its numbers are never below 0"


def two(**judgement: Any) -> dict[str, Any]:
    return {"prompt": "q", "response_1": "b", "response_2": "c", **judgement}


def labelled(name: str, good: Any, bad: Any) -> list[dict[str, Any]]:
    return [{"prompt": "q", "response": "b", name: good}, {"prompt": "q", "response": "c", name: bad}]


FILES = {
    "nemo kto": File(labelled("preference", "chosen", "rejected"), PAIR),
    "kto in words": File(labelled("label", "desirable", "undesirable"), PAIR),
    "a label of yes and no": File(labelled("label", "yes", "No"), PAIR),
    "a label called is_chosen": File(labelled("is_chosen", True, False), PAIR),
    "a label called chosen": File(labelled("chosen", True, False), PAIR),
    "a label called preferred": File(labelled("preferred", True, False), PAIR),
    "a label called thumbs_up": File(labelled("thumbs_up", 1, 0), PAIR),
    "a label called accepted": File(labelled("accepted", True, False), PAIR),
    "a label called passed": File(labelled("passed", True, False), PAIR),
    "an outcome in words": File(labelled("outcome", "correct", "incorrect"), PAIR),
    "a verdict in words": File(labelled("verdict", "pass", "fail"), PAIR),
    "a label called safe": File(labelled("safe", True, False), PAIR),
    "a grade in letters": File(
        [{"prompt": "q", "response": "b", "grade": "F", "is_harmful": True}], [("u:q", "b", None)],
        (UNUSED.format("grade"), UNUSED.format("is_harmful")),
    ),
    "rewards that are all null": File(
        [{"prompt": "q", "responses": ["b", "c"], "rewards": None}], [("u:q", None, None)],
        ("column 'responses' is not used: nothing says which of its answers is better",),
    ),
    "counts called correct": File(
        [{"prompt": "q", "response": "b", "correct": 3}], [("u:q", "b", None)], (UNUSED.format("correct"),)
    ),
    "better and worse": File([{"prompt": "q", "better": "b", "worse": "c"}], PAIR),
    "win and lose": File([{"prompt": "q", "win": "b", "lose": "c"}], PAIR),
    "accepted and rejected": File([{"prompt": "q", "accepted": "b", "rejected": "c"}], PAIR),
    "preferred and dispreferred": File([{"prompt": "q", "preferred": "b", "dispreferred": "c"}], PAIR),
    "good and bad responses": File([{"prompt": "q", "good_response": [a("b")], "bad_response": [a("c")]}], PAIR),
    "y_w and y_l": File([{"prompt": "q", "y_w": "b", "y_l": "c"}], PAIR),
    "stack-exchange-paired": File(
        [{"qid": 1, "question": "q", "response_j": "b", "response_k": "c"}], PAIR, unread=("qid",)
    ),
    "rewardbench 2": File(
        [{"id": "1", "prompt": "q", "chosen": ["b"], "rejected": ["c", "d"], "num_correct": 1}],
        [("u:q", "b", "c"), ("u:q", "b", "d")],
        unread=("id", "num_correct"),
    ),
    "rm-bench": File(
        [{"prompt": "q", "chosen": ["b", "e"], "rejected": ["c", "d"]}],
        [("u:q", "b", "c"), ("u:q", "b", "d"), ("u:q", "e", "c"), ("u:q", "e", "d")],
    ),
    "a worse answer alone": File(
        [{"prompt": "q", "my_best": "b", "rejected": "c"}],
        PAIR,
        refused="has worse answers (rejected) and no column known to hold the better ones; name it with --columns",
        hint="chosen=my_best",
    ),
    "reranking": File(
        [{"query": "q", "positive": "b", "negative": "c"}],
        PAIR,
        refused="holds texts for an embedding (positive, negative), not answers; if they are answers, give --columns",
        hint="chosen=positive,rejected=negative",
    ),
    "ultrainteract pairs": File(
        [{"task": "t", "trajectory": [{"from": "user", "value": "q"}], "chosen": "b", "rejected": "c"}],
        PAIR,
        refused="chosen is not a transcript (Human: … Assistant: …) and there is no prompt column; name the question's "
        "with --columns prompt=… (one of trajectory, task?)",
        hint="prompt=trajectory",
    ),
    "judgebench": File(
        [two(label="A>B"), two(label="B>A") | {"response_1": "c", "response_2": "b"}, two(label="A=B")], PAIR * 2
    ),
    "judgebench, answers with letters": File(
        [{"question": "q", "response_A": "b", "response_B": "c", "label": "A>B"},
         {"question": "q", "response_A": "c", "response_B": "b", "label": "A<B"}], PAIR * 2
    ),
    "arena-hard verdicts": File([two(winner="[[A>>B]]")], PAIR),
    "ppe": File([two(model_a="m", model_b="n", winner="model_a")], PAIR, unread=("model_a", "model_b")),
    "a winner by its order": File([two(winner="First")], PAIR),
    "ties in other words": File(
        [two(winner="a"), two(winner="both good"), two(winner="both_bad"), two(winner="No preference")], PAIR
    ),
    "vertex rlhf": File([{"input_text": "q", "candidate_0": "c", "candidate_1": "b", "choice": 1}], PAIR),
    "candidates with scores": File([{"prompt": "q", "candidates": ["c", "b"], "scores": [1, 2]}], PAIR),
    "alpaca farm": File(
        [{"instruction": "q", "input": "", "output_1": "c", "output_2": "b", "preference": 2}], PAIR
    ),
    "a preference from 1 to 7": File([two(preference=6), two(preference=2)], refused=SCALE),
    "a preference as a probability": File([two(preference=0.8), two(preference="0.1")], refused=SCALE),
    "a preference that is meant as it is": File(
        [two(preference=2)], [("u:q", "c", "b")], ("the strength of a preference",), refused="",
        columns="preference=preference",
    ),
    "two answers, always the same better": File(
        [two(note="n")],
        PAIR,
        refused="has two answers (response_1, response_2) and no column known to say which is better; name it with",
        hint="chosen=response_1,rejected=response_2",
    ),
    "arena votes by the model's name": File(
        [two(model_a="gpt", model_b="claude", winner="gpt"), two(model_a="gpt", model_b="claude", winner="tie")],
        PAIR,
        unread=("model_a", "model_b"),
    ),
    "positive and negative responses": File(
        [{"prompt": "q", "positive_response": "b", "negative_response": "c"}], PAIR
    ),
    "answers of a question, all right": File(
        [{"question": "who?", "answers": ["Ada", "Ada Lovelace"]}],
        [("u:who?", None, None)],
        ("column 'answers' is not used: nothing says which of its answers is better",),
    ),
    "answers and the index of one": File(
        [{"prompt": "q", "answers": ["c", "b"], "best": 1}],
        [("u:q", None, None)],
        ("column 'answers' is not used: nothing says which of its answers is better; order them",),
        ("best",),
    ),
    "eli5": File(
        [{"question": "q", "answers": {"a_id": ["1", "2"], "text": ["c", "b"], "score": [2, 5]}}], PAIR
    ),
    "a pair beside the same input": File(
        [{"instruction": "q", "input": "q", "chosen": "b", "rejected": "c"}], PAIR
    ),
    "preference and messages of one turn": File([{"messages": [u("q")], "chosen": "b", "rejected": "c"}], PAIR),
}  # fmt: skip
