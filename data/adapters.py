"""Known datasets and the user's own: one function each, row → Iterable[Example], in one table of exact names.

A function yields nothing for a useless row that its dataset is known to contain (a tie, a dialogue that ends in a
user's turn); such rows are counted. If rows depend on each other, `prepare` turns the stream of rows into another one.
Only the rows of one group are held in memory.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from data.example import Example, Placed, Row, RowError, ask
from data.judgements import ranked_pairs
from data.ranking import tree_of
from data.recognise import parse_columns, recognise
from data.shapes import Found, Shape, conversation, instruction, pairs, plain_text
from data.sources import Source
from data.turns import implicit_prompt, is_transcript, transcript
from rlhf.errors import DataError, nearest
from rlhf.files import expand_user
from rlhf.template import Message

# --- preferences -----------------------------------------------------------------------------------------------------


def rm_static(row: Row) -> Iterator[Found]:
    """Dahoas/rm-static and Dahoas/full-hh-rlhf: prompt (a transcript), response (which is chosen), chosen, rejected."""
    yield from pairs({name: row[name] for name in ("prompt", "chosen", "rejected")})


def synthetic_instruct(row: Row) -> Iterator[Example]:
    """Dahoas/synthetic-instruct-gptj-pairwise: prompt (a plain question), chosen, rejected."""
    yield Example(ask(row["prompt"]), row["chosen"].strip(), row["rejected"].strip())


def reward_datasets(row: Row) -> Iterator[Found]:
    """yitingxie/rlhf-reward-datasets: prompt (a transcript up to the last "Human:" turn), and chosen and rejected that
    begin with "Assistant:"."""
    texts = [row[name].strip().removeprefix("Assistant:").strip() for name in ("chosen", "rejected")]
    yield from pairs({"prompt": row["prompt"], "chosen": texts[0], "rejected": texts[1]})


def webgpt_comparisons(row: Row) -> Iterator[Example]:
    """openai/webgpt_comparisons: question {full_text}, answer_0, answer_1, score_0, score_1; ties give nothing."""
    texts, scores = [row["answer_0"], row["answer_1"]], [row["score_0"], row["score_1"]]
    yield from ranked_pairs(ask(row["question"]["full_text"]), [t.strip() for t in texts], scores)


def shp(row: Row) -> Iterator[Example]:
    """stanfordnlp/SHP: history, human_ref_A, human_ref_B, labels (1 where A is preferred)."""
    texts = [row["human_ref_A"].strip(), row["human_ref_B"].strip()]
    yield from ranked_pairs(ask(row["history"]), texts, [row["labels"], 1 - row["labels"]])


def hh_rlhf(row: Row) -> Iterator[Example]:
    """Anthropic/hh-rlhf: chosen and rejected are whole transcripts with a common beginning. Some of them end in a
    user's turn or differ before the last one; these give nothing."""
    for name in ("chosen", "rejected"):
        if not is_transcript(row[name]):
            raise RowError(f"{name} is not a transcript (Human: … Assistant: …)")
    turns = [transcript(row[name], answered=True) for name in ("chosen", "rejected")]
    if turns[0][:-1] == turns[1][:-1] and all(t[-1]["role"] == "assistant" for t in turns):
        yield Example(*implicit_prompt(row["chosen"], row["rejected"]))


def summarize_comparisons(row: Row) -> Iterator[Example]:
    """openai/summarize_from_feedback (comparisons): info {title, subreddit, post or article}, summaries, choice."""
    info, summaries = row["info"], row["summaries"]
    # Older copies hold a mapping of lists where newer ones hold a list of mappings.
    texts = summaries["text"] if isinstance(summaries, dict) else [s["text"] for s in summaries]
    head = f"Title: {info['title']}\n\n" if info.get("title") else ""
    body = info.get("post") or info.get("article")
    prompt = ask(f"Summarize this text.\n\n{head}{body}")
    chosen, rejected = texts[row["choice"]], texts[1 - row["choice"]]
    yield Example(prompt, chosen.strip(), rejected.strip())


def ultrafeedback_binarized(row: Row) -> Iterator[Found]:
    """HuggingFaceH4/ultrafeedback_binarized: prompt, chosen and rejected (lists of messages), score_chosen,
    score_rejected; pairs with equal scores give nothing."""
    if row["score_chosen"] > row["score_rejected"]:
        yield from pairs({"prompt": row["chosen"][:-1], "chosen": row["chosen"], "rejected": row["rejected"]})


def tldr_preference(row: Row) -> Iterator[Example]:
    """trl-lib/tldr-preference: prompt (a post that ends with "TL;DR:"), chosen, rejected."""
    yield Example(ask(row["prompt"]), row["chosen"].strip(), row["rejected"].strip())


def oasst_trees(rows: Iterable[Placed]) -> Iterator[Placed]:
    """OpenAssistant/oasst1 has one message a row; the messages of a tree, which stand together, become one row."""

    def tree_of(placed: Placed) -> Any:
        return placed[0] if isinstance(placed[1], RowError) else placed[1].get("message_tree_id")

    for _, group in groupby(rows, key=tree_of):
        placed = list(group)
        broken = [item for item in placed if isinstance(item[1], RowError)]
        yield from broken or [(placed[0][0], {"tree": [row for _, row in placed]})]


def oasst_nested(row: Row) -> Iterator[Example]:
    """A tree of OpenAssistant's own files: the first message is `prompt`, and each holds its replies."""
    yield from oasst1({"tree": tree_of(row["prompt"])})


def oasst1(row: Row) -> Iterator[Example]:
    """A tree of messages → for each user message its replies, ranked (rank 0 is the best); one reply alone is a
    demonstration. Deleted and rejected messages are left out with all that follows them."""
    replies: dict[str | None, list[Row]] = defaultdict(list)
    known = {message["message_id"] for message in row["tree"]}
    for message in row["tree"]:
        if message["parent_id"] is not None and message["parent_id"] not in known:
            raise RowError(
                f"message {message['message_id']} has no parent in its tree: rows of a tree must stand together"
            )
        if not message.get("deleted") and message.get("review_result") is not False:
            replies[message["parent_id"]].append(message)
    open_threads: list[tuple[Row, tuple[Message, ...]]] = [(root, ()) for root in replies[None]]
    while open_threads:
        message, before = open_threads.pop(0)
        role = "user" if message["role"] == "prompter" else "assistant"
        thread = (*before, Message(role=role, content=message["text"]))
        children = replies[message["message_id"]]
        open_threads += [(child, thread) for child in children]
        if role == "user" and children:
            ranked = [child for child in children if child.get("rank") is not None]
            if len(ranked) > 1:
                yield from ranked_pairs(thread, [c["text"] for c in ranked], [-c["rank"] for c in ranked])
            else:
                yield Example(thread, (ranked or children)[0]["text"])


# --- demonstrations --------------------------------------------------------------------------------------------------


def alpaca(row: Row) -> Iterator[Found]:
    """tatsu-lab/alpaca: instruction, input (often empty), output; `text` repeats them in a fixed wording."""
    if row["output"].strip():
        yield from instruction({name: row.get(name) for name in ("instruction", "input", "output")})


def no_robots(row: Row) -> Iterator[Found]:
    """HuggingFaceH4/no_robots: messages, of which a system turn may come first; prompt repeats the first question."""
    yield from conversation({"messages": row["messages"]})


# --- the pretraining mix ---------------------------------------------------------------------------------------------


def wikitext_articles(rows: Iterable[Placed]) -> Iterator[Placed]:
    """wikitext has one line a row; the lines from one title (" = Title = ") to the next become one row."""
    start, lines = "", []
    for where, row in rows:
        if isinstance(row, RowError):
            yield where, row
            continue
        line = row["text"]
        title = line.startswith(" = ") and not line.startswith(" = = ")
        if title and lines:
            yield start, {"text": "".join(lines)}
            lines = []
        start = start if lines else where
        lines.append(line)
    if lines:
        yield start, {"text": "".join(lines)}


def squad_v2(row: Row) -> Iterator[Found]:
    """squad_v2: context (repeated for each question about it; repeats are left out later), question, answers."""
    yield from plain_text({"text": row["context"]})


# --- the table -------------------------------------------------------------------------------------------------------

# exact hub name → what its rows are, the function, and what makes its rows if they depend on each other
KNOWN: dict[str, Shape] = {
    "Dahoas/rm-static": Shape("preference pairs on transcripts", rm_static),
    "Dahoas/full-hh-rlhf": Shape("preference pairs on transcripts", rm_static),
    "Dahoas/synthetic-instruct-gptj-pairwise": Shape("preference pairs", synthetic_instruct),
    "yitingxie/rlhf-reward-datasets": Shape("preference pairs on transcripts", reward_datasets),
    "openai/webgpt_comparisons": Shape("two answers with scores", webgpt_comparisons),
    "stanfordnlp/SHP": Shape("two comments with a label", shp),
    "Anthropic/hh-rlhf": Shape("preference pairs of whole transcripts", hh_rlhf),
    "openai/summarize_from_feedback": Shape("two summaries with a choice", summarize_comparisons),
    "HuggingFaceH4/ultrafeedback_binarized": Shape("conversational preference pairs", ultrafeedback_binarized),
    "trl-lib/tldr-preference": Shape("preference pairs", tldr_preference),
    "OpenAssistant/oasst1": Shape("message trees, ranked replies expanded to pairs", oasst1, oasst_trees),
    "tatsu-lab/alpaca": Shape("instructions with an output", alpaca),
    "HuggingFaceH4/no_robots": Shape("conversations", no_robots),
    "Salesforce/wikitext": Shape("plain text, lines joined to articles", plain_text, wikitext_articles),
    "rajpurkar/squad_v2": Shape("plain text: the contexts", squad_v2),
}

TREES = "message trees, ranked replies expanded to pairs"
# Columns by which a copy of a dataset is known that has its own function.
COPIES: dict[frozenset[str], Shape] = {
    frozenset(("message_id", "parent_id", "role", "text", "message_tree_id")): KNOWN["OpenAssistant/oasst1"],
    frozenset(("message_tree_id", "prompt", "tree_state")): Shape(TREES, oasst_nested),
    frozenset(("history", "human_ref_A", "human_ref_B", "labels")): KNOWN["stanfordnlp/SHP"],
    frozenset(("question", "answer_0", "answer_1", "score_0", "score_1", "quotes_0")): KNOWN[
        "openai/webgpt_comparisons"
    ],
    frozenset(("info", "summaries", "choice")): KNOWN["openai/summarize_from_feedback"],
}


def adapter_for(source: Source, rows: Sequence[Row], *, columns: str, data_adapter: str) -> Shape:
    """How to read a source, of which `rows` are the first: by `data_adapter`, else by `columns` if it has them, else as
    the known dataset that it is, else by its shape. Raises RowError when the rows fit no shape, DataError when the
    settings cannot be used.
    """
    if data_adapter:
        return KNOWN.get(data_adapter) or Shape(f"read by {data_adapter}", load_adapter(data_adapter))
    mapping = parse_columns(columns)
    if any(column in row for row in rows for column in mapping.values()):
        return recognise(rows, mapping)
    if source.hub and source.hub.name in KNOWN:
        return KNOWN[source.hub.name]
    if copied := next((known for names, known in COPIES.items() if any(names <= row.keys() for row in rows)), None):
        return copied
    return recognise(rows, {name: column for name, column in mapping.items() if not column})


def load_adapter(spec: str) -> Any:
    """The function of `--data-adapter file.py:function`."""
    name, colon, function = spec.rpartition(":")
    try:
        path = expand_user(Path(name))
    except ValueError as error:
        raise DataError(f"--data-adapter {spec}: {error}") from None
    if not colon or path.suffix != ".py":
        raise DataError(
            f"--data-adapter {spec}: write it as file.py:function, for example my_data.py:to_example, or as the name "
            f"of a known dataset whose columns the rows have{nearest(spec, KNOWN)}"
        )
    if not path.is_file():
        raise DataError(f"--data-adapter {spec}: {path} does not exist")
    module_spec = importlib.util.spec_from_file_location(f"data_adapter_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise DataError(f"--data-adapter {spec}: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        raise DataError(f"--data-adapter {spec}: {path} fails on import: {type(error).__name__}: {error}") from error
    found: Any = getattr(module, function, None)
    if not callable(found):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise DataError(f"--data-adapter {spec}: {path} has no function '{function}'{nearest(function, functions)}")
    return found
