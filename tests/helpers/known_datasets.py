"""Rows of the known datasets in their real schema, and what is learned from them."""

from __future__ import annotations

from typing import Any

TRANSCRIPT = "\n\nHuman: Name a fruit.\n\nAssistant: Fig.\n\nHuman: Another?\n\nAssistant:"
THREAD = "Human: Name a fruit.\n\nAssistant: Fig.</s>\n\nHuman: Another?\n\nAssistant:"
ASKED = "Human: Name a fruit.\n\nAssistant:"
PAIR = [(ASKED, " Fig</s>", " Stone</s>")]


def message(ident: str, parent: str | None, role: str, text: str, **values: Any) -> dict[str, Any]:
    """A row of OpenAssistant/oasst1."""
    row = {
        "message_id": ident, "parent_id": parent, "user_id": "u", "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text, "role": role, "lang": "en", "review_count": 3, "review_result": True, "deleted": False,
        "rank": None, "synthetic": False, "model_name": None, "message_tree_id": ident.split(".")[0],
        "tree_state": "ready_for_export", "detoxify": None, "emojis": {"name": ["+1"], "count": [2]},
        "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
    }  # fmt: skip
    return row | values


OASST = [
    message("a", None, "prompter", "Name a fruit."),
    message("a.1", "a", "assistant", "Stone", rank=2),
    message("a.2", "a", "assistant", "Fig.", rank=0),
    message("a.3", "a", "assistant", "A fig", rank=1),
    message("a.4", "a", "assistant", "spam", rank=3, deleted=True),
    message("a.5", "a.2", "prompter", "Another?"),
    message("a.6", "a.5", "assistant", "Pear"),
    message("a.7", "a.4", "prompter", "never seen"),
    message("b", None, "prompter", "Alone"),
]

# name → rows, and of each Example the decoded prompt and, per response, the decoded tokens that count
CASES: dict[str, tuple[list[dict[str, Any]], list[tuple[str, ...]]]] = {
    "Dahoas/rm-static": (
        [{"prompt": TRANSCRIPT, "response": " Pear", "chosen": " Pear", "rejected": " Stone"}],
        [(THREAD, " Pear</s>", " Stone</s>")],
    ),
    "Dahoas/full-hh-rlhf": (
        [{"prompt": TRANSCRIPT, "response": "Pear", "chosen": "Pear", "rejected": "Stone"}],
        [(THREAD, " Pear</s>", " Stone</s>")],
    ),
    "Dahoas/synthetic-instruct-gptj-pairwise": (
        [{"prompt": "Name a fruit.", "chosen": "Fig", "rejected": "\nStone"}],
        PAIR,
    ),
    "yitingxie/rlhf-reward-datasets": (
        [
            {
                "prompt": "\n\nHuman: Name a fruit.\n\nAssistant: Fig.\n\nHuman: Another?\n\n",
                "chosen": "Assistant: Pear",
                "rejected": "Assistant: Stone",
            }
        ],
        [(THREAD, " Pear</s>", " Stone</s>")],
    ),
    "openai/webgpt_comparisons": (
        [
            {
                "question": {"dataset": "eli5", "id": "5x", "full_text": "Name a fruit."},
                "quotes_0": {"title": ["Rocks"], "extract": ["…"]}, "answer_0": "Stone",
                "tokens_0": {"prefix": [1], "completion": [2]}, "score_0": -0.5,
                "quotes_1": {"title": ["Figs"], "extract": ["…"]}, "answer_1": "Fig",
                "tokens_1": {"prefix": [1], "completion": [3]}, "score_1": 0.5,
            },
            {
                "question": {"dataset": "eli5", "id": "5y", "full_text": "A tie?"},
                "answer_0": "Yes", "score_0": 0.0, "answer_1": "No", "score_1": 0.0,
            },
        ],
        PAIR,
    ),
    "stanfordnlp/SHP": (
        [
            {
                "post_id": "x", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": "Name a fruit.",
                "c_root_id_A": "A1", "c_root_id_B": "B1", "created_at_utc_A": 1636104786, "created_at_utc_B":
                1636122057, "score_A": 4, "score_B": 9, "human_ref_A": "Stone", "human_ref_B": "Fig", "labels": 0,
                "seconds_difference": 17271.0, "score_ratio": 2.25,
            }
        ],
        PAIR,
    ),
    "Anthropic/hh-rlhf": (
        [
            {"chosen": f"{TRANSCRIPT} Pear", "rejected": f"{TRANSCRIPT} Stone"},
            # as in the real set: one side ends in a user's turn, or the two differ before the last turn
            {"chosen": f"{TRANSCRIPT} Pear\n\nHuman: ok", "rejected": f"{TRANSCRIPT} Stone"},
            {"chosen": f"{TRANSCRIPT} Pear", "rejected": "\n\nHuman: Name a stone.\n\nAssistant: Slate"},
        ],
        [(THREAD, " Pear</s>", " Stone</s>")],
    ),
    "openai/summarize_from_feedback": (
        [
            {
                "info": {"id": "t3", "post": "I ate it.", "title": "A fig", "subreddit": "food", "site": None,
                         "article": None},
                "summaries": [{"text": " Stone", "policy": "sup1", "note": None},
                              {"text": " Fig", "policy": "ref", "note": "ok"}],
                "choice": 1, "worker": "w", "batch": "batch3.json", "split": "train", "extra": {"confidence": 7},
            },
            {
                "info": {"id": "c", "post": None, "title": None, "subreddit": None, "site": "cnn", "article": "News."},
                "summaries": {"text": ["Fig", "Stone"], "policy": ["a", "b"], "note": [None, None]},
                "choice": 0, "worker": "w", "batch": "cnndm0.json", "split": "valid1", "extra": {"confidence": None},
            },
        ],
        [
            ("Human: Summarize this text.\n\nTitle: A fig\n\nI ate it.\n\nAssistant:", " Fig</s>", " Stone</s>"),
            ("Human: Summarize this text.\n\nNews.\n\nAssistant:", " Fig</s>", " Stone</s>"),
        ],
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        [
            {
                "prompt": "Name a fruit.", "prompt_id": "f0",
                "chosen": [{"content": "Name a fruit.", "role": "user"}, {"content": "Fig", "role": "assistant"}],
                "rejected": [{"content": "Name a fruit.", "role": "user"}, {"content": "Stone", "role": "assistant"}],
                "messages": [{"content": "Name a fruit.", "role": "user"}, {"content": "Fig", "role": "assistant"}],
                "score_chosen": score, "score_rejected": 3.0,
            }
            for score in (8.5, 3.0)
        ],
        PAIR,
    ),
    "trl-lib/tldr-preference": (
        [{"prompt": "SUBREDDIT: r/food\n\nPOST: I ate it.\n\nTL;DR:", "chosen": " Fig", "rejected": " Stone"}],
        [("Human: SUBREDDIT: r/food\n\nPOST: I ate it.\n\nTL;DR:\n\nAssistant:", " Fig</s>", " Stone</s>")],
    ),
    "OpenAssistant/oasst1": (
        OASST,
        [
            (ASKED, " Fig.</s>", " A fig</s>"),
            (ASKED, " Fig.</s>", " Stone</s>"),
            (ASKED, " A fig</s>", " Stone</s>"),
            (THREAD, " Pear</s>"),
        ],
    ),
    "tatsu-lab/alpaca": (
        [
            {"instruction": "Name it.", "input": "red, round", "output": "Apple", "text": "Below is an instruction …"},
            {"instruction": "Name a fruit.", "input": "", "output": "Fig", "text": "Below is an instruction …"},
            {"instruction": "Say nothing.", "input": "", "output": "", "text": "Below is an instruction …"},
        ],
        [("Human: Name it.\n\nred, round\n\nAssistant:", " Apple</s>"), (ASKED, " Fig</s>")],
    ),
    "HuggingFaceH4/no_robots": (
        [
            {
                "prompt": "Name a fruit.", "prompt_id": "2d", "category": "Chat",
                "messages": [
                    {"content": "Be brief.", "role": "system"},
                    {"content": "Name a fruit.", "role": "user"},
                    {"content": "Fig.", "role": "assistant"},
                    {"content": "Another?", "role": "user"},
                    {"content": "Pear", "role": "assistant"},
                ],
            }
        ],
        [(f"Be brief.\n\n{THREAD}", " Pear</s>")],
    ),
}  # fmt: skip

# name → rows, and the plain texts in them
TEXTS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "Salesforce/wikitext": (
        [
            {"text": line}
            for line in (
                "",
                " = Fig = \n",
                "",
                " A fig is a fruit . \n",
                " = = History = = \n",
                " Old . \n",
                "",
                " = Pear = \n",
                " Also . \n",
            )
        ],
        [" = Fig = \n A fig is a fruit . \n = = History = = \n Old . \n", " = Pear = \n Also . \n"],
    ),
    "rajpurkar/squad_v2": (
        [{"id": "5", "title": "Fig", "context": "A fig is a fruit.", "question": "What?", "answers": {"text": []}}],
        ["A fig is a fruit."],
    ),
}
