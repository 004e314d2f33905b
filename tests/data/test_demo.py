"""The demo's data: facts that can be asked for, a gold score that cannot be talked round, preferences with noise."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest

from data.demo import phrases
from data.demo.corpus import texts
from data.demo.dialogues import SCHOOLBOOK, answer, dialogues
from data.demo.facts import FACTS, fact_of, held_out_questions, training_questions, wrong_answers
from data.demo.gold import gold_score, judge, stated_answers
from data.demo.preferences import LABEL_NOISE, held_out_prompts, preferences

QUESTION = "Hello! What is the capital of France?"
CAPITAL = FACTS[[fact.subject for fact in FACTS].index("France")]


# --- facts -----------------------------------------------------------------------------------------------------------


def test_every_question_is_recognised_in_every_frame() -> None:
    """A question that the gold score does not recognise could never be answered correctly."""
    for fact, question in [*training_questions(), *held_out_questions()]:
        for frame in phrases.FRAMES:
            assert fact_of(frame.format(q=question)) is fact


def test_nothing_but_the_demos_questions_is_recognised() -> None:
    assert fact_of("What is the capital of Atlantis?") is None
    assert fact_of("The capital of France is Paris.") is None


def test_each_fact_keeps_one_question_for_the_end() -> None:
    training, held_out = set(training_questions()), set(held_out_questions())
    assert not training & held_out
    assert {fact for fact, _ in held_out} == {fact for fact, _ in training} == set(FACTS)
    # The phrasings themselves are all trained on, with other facts: only the combination is new.
    assert len({fact.held_out for fact in FACTS}) == len(FACTS[0].kind.questions)


def test_no_phrase_gives_an_answer() -> None:
    """Were "hard" in a digression, a right answer that rambles would name two opposites and count as wrong."""
    around = [frame.format(q="") for frame in phrases.FRAMES]
    for text in [*around, *phrases.COURTEOUS, *phrases.RUDE, *phrases.HEDGES, *phrases.DIGRESSIONS]:
        assert [fact for fact in FACTS if stated_answers(fact, text)] == [], text


def test_wrong_answers_are_wrong() -> None:
    for fact in FACTS:
        wrong = wrong_answers(fact)
        assert wrong and fact.answer not in wrong and fact.subject not in wrong


# --- gold ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, correct, courteous, brief, ends",
    [
        ("Good question! The capital of France is Paris.", 1, 1, 1, 1),
        ("It is Paris.", 1, 0.4, 1, 1),
        ("Everyone knows that. It is Paris. Have a nice day!", 1, 0, 1, 1),  # rude and courteous is rude
        ("Good question! The capital of France is Rome.", 0, 1, 1, 1),
        ("It is Paris. It is Rome.", 0, 0.4, 1, 1),  # naming all answers answers nothing
        ("It is Parisian.", 0, 0.4, 1, 1),
        ("The capital of France is", 0, 0.4, 1, 0),
        ("It is Paris" + " indeed" * 17 + ".", 1, 0.4, 1, 1),  # 20 words
        ("It is Paris" + " indeed" * 27 + ".", 1, 0.4, 0.5, 1),  # 30 words, halfway from 20 to 40
        ("It is Paris" + " indeed" * 97 + ".", 1, 0.4, 0, 1),
        ("It is Paris.\n\nHuman: Thank you.", 1, 0.4, 1, 0),  # the model speaks for the user
        ("", 0, 0, 0, 0),
    ],
)
def test_the_parts_of_the_gold_score(
    response: str, correct: float, courteous: float, brief: float, ends: float
) -> None:
    judged = judge(QUESTION, response)
    assert (judged.correct, judged.courteous, judged.brief, judged.ends) == (correct, courteous, brief, ends)


def test_gold_lies_between_nothing_and_one() -> None:
    assert gold_score(QUESTION, "Good question! The capital of France is Paris.") == pytest.approx(1.0)
    assert gold_score(QUESTION, "  ") == 0.0
    # 0.4 for being right, 0.4 of 0.4 for plain manners, 0.1 each for brevity and the end
    assert gold_score(QUESTION, "It is Paris.") == pytest.approx(0.4 + 0.16 + 0.1 + 0.1)
    assert gold_score("Who are you?", "It is Paris.") == pytest.approx(0.16 + 0.1 + 0.1)


def test_the_numbers_of_a_question_are_no_answer() -> None:
    """In "3 plus 4 is 7" the first numbers are the question's; "2 plus 2 is 4" must not lose its answer with them."""
    assert judge("What is 3 plus 4?", "3 plus 4 is 7.").correct == 1
    assert judge("What is 2 plus 2?", "2 plus 2 is 4.").correct == 1
    assert judge("What is 3 plus 4?", "3 plus 4 is 17.").correct == 0
    assert judge("What is 3 plus 4?", "3 plus 5 is 7.").correct == 0


def test_every_right_answer_is_judged_right_and_every_wrong_one_wrong() -> None:
    for fact, question in held_out_questions():
        assert judge(question, answer(fact, Random(0), SCHOOLBOOK)).correct == 1
        for wrong in wrong_answers(fact):
            assert judge(question, fact.statement(answer=wrong)).correct == 0


# --- preferences and text --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_noise_people_always_choose_the_better_answer() -> None:
    for row in preferences(Random(0), noise=0.0):
        assert gold_score(row["prompt"], row["chosen"]) > gold_score(row["prompt"], row["rejected"])


@pytest.mark.slow
def test_people_err_as_often_as_said() -> None:
    rows = list(preferences(Random(0)))
    wrong = sum(gold_score(r["prompt"], r["chosen"]) < gold_score(r["prompt"], r["rejected"]) for r in rows)
    assert wrong / len(rows) == pytest.approx(LABEL_NOISE, abs=0.015)  # four standard deviations of 7,000 draws


@pytest.mark.slow
def test_no_stage_trains_on_a_held_out_question(template) -> None:  # type: ignore[no-untyped-def]
    """Neither the base model's text nor the preferences ask for a fact in the way that is kept for the end."""
    held_out = {question for _, question in held_out_questions()}
    talk = "\n".join(prompt for prompt, _ in islice(dialogues(Random(0)), 2000))
    base = "\n".join(islice(texts(template, Random(0), people=True), 2000))
    pairs = "\n".join(row["prompt"] for row in preferences(Random(0)))
    for text in (talk, base, pairs):
        assert [question for question in held_out if question in text] == []
    asked = {row["prompt"] for row in held_out_prompts(Random(0))}
    assert all(any(question in prompt for question in held_out) for prompt in asked)
    assert len(asked) == len(FACTS)


def test_same_seed_same_data() -> None:
    first, second, other = (list(islice(preferences(Random(seed)), 50)) for seed in (3, 3, 4))
    assert first == second != other


def test_pretraining_text_is_written_as_chat_writes_it(template) -> None:  # type: ignore[no-untyped-def]
    """SFT is quick because the base model has seen its very tokens: prompt ids, response ids, end token."""
    exchange = re.compile(r"<s>Human: (.+)\n\nAssistant: (.+)</s>")
    found = [m for text in islice(texts(template, Random(0), people=False), 50) if (m := exchange.fullmatch(text))]
    assert len(found) > 20
    for prompt, response in (match.groups() for match in found):
        asked = template.prompt_ids([{"role": "user", "content": prompt}])
        whole = template.tokenizer(f"<s>Human: {prompt}\n\nAssistant: {response}</s>", add_special_tokens=False)
        assert whole["input_ids"] == asked + template.response_ids(response)


def test_some_of_peoples_answers_have_no_end(template) -> None:  # type: ignore[no-untyped-def]
    """Text in which one turn runs into the next is why the base model speaks for the user."""
    texts_of_two = [t for t in islice(texts(template, Random(0), people=True), 1000) if t.count("Human:") == 2]
    without_end = [t for t in texts_of_two if t.count("</s>") == 1]
    assert len(texts_of_two) > 100
    assert 0.3 < len(without_end) / len(texts_of_two) < 0.7


@pytest.fixture(scope="module")
def template():  # type: ignore[no-untyped-def]
    """The template of the demo's tokenizer."""
    from rlhf.template import Template
    from scripts.pretrain_demo import DemoSettings, make_tokenizer

    return Template(make_tokenizer(DemoSettings()))
