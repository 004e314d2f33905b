"""What columns are called: our names, those of other tools for the same things, and those that say what no stage reads.

Names are compared without case, and with "_" for "-", blanks and dots. Where a name alone does not tell what a column
is, its content in the first rows does (`names_of`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.example import Row
from data.judgements import RANK_FIELDS, SCORE_FIELDS, as_number
from data.labels import WORDS
from data.meaning import WORDY_LABELS, are_answers, asks, beside_others, is_message, is_talk, items, pointers
from data.sides import CHOICES, normal, pairs_of_names, two_answers

# Other names that columns commonly have; used where the first name is missing.
SYNONYMS = {
    "query": "prompt",
    "question": "prompt",
    "problem": "prompt",
    "context_messages": "prompt",
    "input_text": "prompt",
    "prompt_messages": "prompt",
    "inputs": "prompt",
    "human": "prompt",
    "completion": "chosen",
    "response": "chosen",
    "chosen_response": "chosen",
    "chosen_messages": "chosen",
    "generation": "chosen",
    "generated_solution": "chosen",
    "chosen_answer": "chosen",
    "chosen_completion": "chosen",
    "preferred_output": "chosen",
    "assistant": "chosen",
    "targets": "chosen",
    "output_text": "chosen",
    "rejected_response": "rejected",
    "rejected_answer": "rejected",
    "rejected_completion": "rejected",
    "non_preferred_output": "rejected",
    "responses": "answers",
    "completions": "answers",
    "generations": "answers",
    "candidates": "answers",
    "conversations": "messages",
    "conversation": "messages",
    "contents": "messages",
    "system_prompt": "system",
    "system_message": "system",
    "systeminstruction": "system",
    "system_instruction": "system",
    "kto_tag": "label",
    "functions": "tools",
    "is_correct": "label",
    "is_safe": "label",
    "desirable": "label",
    "correct": "label",
    **dict.fromkeys(("good", "accepted", "approved", "liked", "passed", "thumbs_up", "safe", "valid"), "label"),
    **dict.fromkeys(("verdict", "outcome", "judgement", "judgment"), "label"),
    **{f"is_{what}": "label" for what in ("good", "accepted", "chosen", "preferred", "desirable", "valid")},
    **{f"{mark}_{what}": f"{mark}_score" for mark in ("chosen", "rejected") for what in ("rating", "reward")},
    **{f"{what}_{mark}": f"{mark}_score" for mark in ("chosen", "rejected") for what in ("score", "rating", "reward")},
    **{f"{mark}_avg_rating": f"{mark}_score" for mark in ("chosen", "rejected")},
    "ratings": "scores",
    "rewards": "scores",
    "ranking": "rank",
    "rating": "score",
    "reward": "score",
    "overall_score": "score",
    "helpfulness": "score",
    "better_response_id": "winner",
    "choice": "winner",
    "preferred": "winner",
    "overall_preference": "preference",
    "preference_strength": "preference",
    "winner_model_a": "first_score",
    "winner_model_b": "second_score",
}
# Columns of common data that say something and that no shape reads.
TELLING = {
    *("documents", "chat_template_kwargs", "template_kwargs", "enable_thinking", "explanation"),
    *("answer", "final_answer", "expected_answer", "solution", "ground_truth", "reference", "target", "gold"),
    *("data_source", "test_cases", "tests", "verifier", "correct_answers", "incorrect_answers", "safer_response_id"),
    *("correctness", "coherence", "complexity", "verbosity", "quality", "is_response_0_safe", "is_response_1_safe"),
    *("correctness_math_verify", "correctness_llama", "winner_tie", "train", "training", "loss", "mask", "status"),
    *("unanswerable_question", "corrected", "revision", "reflection", "objects", "article", "summary", "passage"),
    *("document", "steps", "value", "values", "critique", "feedback", "instances", "definition", "code", "test"),
    *("test_list", "resolved", "success", "ideal"),
}  # fmt: skip
# Words in the names of columns that say something in any case.
TELLING_WORDS = re.compile(
    "(^|_)(reasoning|thinking|thoughts?|rationale|scores?|ratings?|rewards?|labels?|preferences?|tools|weights?)(_|$)"
    "|(^|_)(verdict|judge?ment|outcome|grades?|votes|upvotes|downvotes|stars|ranks?|harmful|valid|hallucination)(_|$)"
    r"|(^|_)(messages|response|answer|completion|solution|generation|cot)(_?\d+)?$"
    "|(^|_)(?<!num_)(responses|answers|completions|generations|solutions)$"
)
MEDIA = {f"{name}{many}" for name in ("image", "video", "audio") for many in ("", "s")}
# Columns of formats that are not read, where no other columns make a shape → what they are, and the way out.
REFUSED = {
    "input_ids": "holds tokens (input_ids), not text; give the rows as they were before a tokenizer read them",
    "segments": (
        "holds segments of text without turns (segments), which no chat template can write; write them as messages "
        "[{role, content}], with train: false in a turn that is not learned"
    ),
}
EMBEDDING = "positive_messages"
LISTED = {"score": "scores", "rank": "ranks", "output": "answers"}
# Labels only where they hold true and false.
BY_CONTENT = (
    *("is_correct", "is_safe", "desirable", "correct", "is_good", "is_accepted", "is_chosen", "is_preferred"),
    *("is_desirable", *WORDY_LABELS),
)
WORDS_OF_AN_ANSWER = 6  # from which an answer is written out rather than a result to compare with


def tells(kind: str) -> bool:
    """Whether a column of this name, which no shape reads, says something."""
    return kind in TELLING or kind in (*SYNONYMS, *REFUSED, *CHOICES) or TELLING_WORDS.search(kind) is not None


@dataclass(frozen=True)
class Names:
    """Our names of a file's columns, the better ones first.

    columns  given by the user, our name → its column
    ignored  our names that the user says no column has (`--columns score=`)
    found    column → our name; None for a column that is none of ours
    weak     answers that are only taken where there is no other
    short    results to compare with, which are only taken as the better answer of a pair
    why      column → why it is not used, where its name could be one of ours
    own      all our names
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    found: Mapping[str, str | None] = field(default_factory=dict)
    weak: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()

    def among(self, there: Iterable[str]) -> dict[str, str]:
        """Our name → its column, of the columns that are there."""
        there = set(there)
        taken = set(self.columns.values())
        names = {name: column for name, column in self.columns.items() if column in there}
        known = [column for column in self.found if column in there]
        for column in [*known, *sorted(there - self.found.keys())]:
            name = self.name_of(column)
            if name and column not in taken and name not in self.columns and name not in self.ignored:
                names.setdefault(name, column)
        if "input" in names and not names.keys() & {"prompt", "instruction", "messages"}:
            names["prompt"] = names.pop("input")
        if "output" in names and not names.keys() & {"chosen", "instruction"}:
            names["chosen"] = names.pop("output")
        if "rejected_messages" in names and "chosen" in names and not names.keys() & {"rejected", "messages"}:
            names["rejected"] = names.pop("rejected_messages")
        answered = {"chosen", "output", "messages", "answers", "first"}
        for column in (*self.weak, *self.short) if "rejected" in names else self.weak:
            if column in there and column not in taken and not names.keys() & answered and "chosen" not in self.ignored:
                names["chosen"] = column
        return names

    def name_of(self, column: str) -> str | None:
        """Our name of a column, also of one that only later rows have, where its name tells enough."""
        if column in self.found:
            return self.found[column]
        kind = normal(column)
        name = SYNONYMS.get(kind, kind)
        return name if name in self.own and kind not in BY_CONTENT and (name != "answers" or kind == name) else None


def names_of(rows: Sequence[Row], columns: Mapping[str, str], own: Iterable[str]) -> Names:
    """What the columns of a file are called among ours (`own`), by their names and their content in `rows`."""
    given = {name: column for name, column in columns.items() if column}
    ignored = frozenset(columns) - given.keys()
    there = list(dict.fromkeys(column for row in rows for column in row))
    order = [*own, *SYNONYMS]
    known = sorted((c for c in there if normal(c) in order), key=lambda c: (order.index(normal(c)), c != normal(c)))
    named = {column: SYNONYMS.get(normal(column), normal(column)) for column in known}
    names = {column: name for column, name in named.items() if name not in ignored}
    why: dict[str, str] = {}
    weak, short = [], []
    content = {column: [row[column] for row in rows if row.get(column) is not None] for column in there}
    _correct(names, content, why)
    judged = bool(
        {"scores", "ranks", "labels"} & {*(name for column, name in names.items() if content[column]), *given}
    )
    for column, values in content.items():
        kind = normal(column)
        if kind == "context" and values:
            names[column] = "prompt" if all(map(is_talk, values)) else "input"
        elif kind in ("answer", "solution") and values and all(isinstance(value, str) for value in values):
            if _written_out(values):
                weak.append(column)
            else:
                short.append(column)
                why[column] = f"it holds results to compare with; --columns chosen={column} learns them as answers"
        elif names.get(column) == "answers" and not (
            _best_first(kind, values, content) or judged or any(map(_judged, values))
        ):
            del names[column]
            texts = not any(isinstance(item, Mapping) and "role" not in item for item in items(values))
            way = f"--columns answers={column} takes the first" if texts else "give each a field 'score' or 'rank'"
            pointer = next(iter(pointers(values, content)), None)
            if pointer and kind == "answers":
                way = f"order them, the best first, and leave out '{pointer}', which points to one"
            why[column] = f"nothing says which of its answers is better; {way}"
    weak.sort(key=lambda column: normal(column) != "solution")
    found = {**names, **{column: None for column in there if column not in names}}
    return Names(given, ignored, found, tuple(weak), tuple(short), why, frozenset(order) - SYNONYMS.keys())


def _correct(names: dict[str, str], content: Mapping[str, list[Any]], why: dict[str, str]) -> None:
    """Change names that the content of their columns contradicts; put into `why` what the user should know of it."""
    kinds = {normal(column): column for column in content}
    several = "answers" in names.values()
    for column, name in list(names.items()):
        values = content[column]
        if values and all(isinstance(value, (list, tuple)) for value in values):  # a list of what a name has one of
            talks = name == "output" and all(map(is_message, items(values)))
            names[column] = "labels" if name == "label" and several else LISTED.get(name, name) if not talks else name
        if normal(column) in BY_CONTENT and not all(map(_is_label, values)):
            del names[column]
        elif name == "label" and values and all(isinstance(value, Mapping) for value in values):
            del names[column]  # classes of the question
        elif values and _judges(normal(column), values):
            names[column] = "label"
        elif name == "chosen" and values and all(map(asks, values)) and list(names.values()).count("chosen") > 1:
            names[column] = "prompt"
    for beside, column, name in (("assistant", "user", "prompt"), ("reasoning_content", "content", "chosen")):
        if {beside, column} <= kinds.keys():
            names[kinds[column]] = name
    sides = two_answers(list(content))
    for name, column in sides.items():
        names.setdefault(column, name)
    verdict = kinds.get("preference")
    if verdict and not sides and content[verdict] and all(map(_is_label, content[verdict])):
        names[verdict] = "label"  # "chosen" or "rejected" beside one answer
    for better, worse in pairs_of_names(kinds):
        if are_answers((better, worse), names, content, list(sides.values())[:2]):
            for column in [column for column, name in names.items() if name in ("chosen", "rejected")]:
                del names[column]
            names |= {better: "chosen", worse: "rejected"}
    weak = beside_others(kinds, {name for column, name in names.items() if content[column]}, content)
    for column in weak & names.keys():
        del names[column]
    if sides:
        numbered = sides["second"][-1:].isdigit()
        for column in [kinds[kind] for kind in ("preference", "label") if kind in kinds]:
            words = all(isinstance(v, str) and as_number(v) is None for v in content[column])
            if words or (numbered and all(str(value) in ("0", "1", "2") for value in content[column])):
                names[column] = "winner"
            elif column == verdict and _is_a_scale(content[column]):
                del names[column]
                why[column] = (
                    "its numbers are never below 0, where the first is better; subtract the middle of their scale, or "
                    f"give --columns preference={column} if that is 0"
                )


def _best_first(kind: str, values: Sequence[Any], content: Mapping[str, list[Any]]) -> bool:
    """Whether answers without a judgement stand with the best one first. Short ones to a question are all right, and
    a column that points to one of them says that the first is not the best."""
    kinds = {normal(column) for column in content}
    points = pointers(values, content)
    texts = [item for item in items(values) if isinstance(item, str)]
    results = texts and not _written_out(texts) and not kinds & {"prompt", "instruction", "messages"}
    return kind in ("answers", "output") and not results and not points


def _judges(kind: str, values: Sequence[Any]) -> bool:
    """Whether a column of this name, which holds numbers or texts elsewhere, says of one answer whether it is good."""
    if kind in ("score", "reward"):
        return all(map(_is_label, values))
    return kind in ("chosen", "preferred") and all(isinstance(value, bool) for value in values)


def _is_label(value: Any) -> bool:
    return str(value).strip().lower() in WORDS


def _is_a_scale(values: Iterable[Any]) -> bool:
    """Whether numbers of a preference have their middle elsewhere than at 0, as 1 to 5 and probabilities have."""
    numbers = [number for number in map(as_number, values) if number is not None]
    return bool(numbers) and min(numbers) >= 0 and max(numbers) > 0


def _judged(value: Any) -> bool:
    """Whether a list, perhaps written as text, holds answers with their scores or ranks."""
    if isinstance(value, str):
        return any(f"{mark}{name}{mark}:" in value for name in (*SCORE_FIELDS, *RANK_FIELDS) for mark in "\"'")
    items = value if isinstance(value, (list, tuple)) else []
    return any(isinstance(item, Mapping) and item.keys() & {*SCORE_FIELDS, *RANK_FIELDS} for item in items)


def _written_out(texts: Sequence[str]) -> bool:
    """Whether most texts are whole answers, not a word or a number to compare with."""
    return 2 * sum(len(text.split()) >= WORDS_OF_AN_ANSWER or "####" in text for text in texts) > len(texts)
