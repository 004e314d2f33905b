"""The demo's data: facts that can be read in the prompt, a gold score that manners do not buy, noisy preferences."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest

from data.demo import phrases
from data.demo.corpus import texts
from data.demo.dialogues import SCHOOLBOOK, Habits, answer, ask, core, dialogues
from data.demo.facts import FACTS, KINDS, fact_of, held_out_questions, training_questions, wrong_answers
from data.demo.gold import gold_parts, gold_score, judge, stated_answers
from data.demo.preferences import LABEL_NOISE, demonstrations, held_out_prompts, preferences

PROMPT = "I live in Paris. Hello! What is my city?"
PARIS = FACTS[[fact.answer for fact in FACTS].index("Paris")]


# --- facts -----------------------------------------------------------------------------------------------------------


def test_every_question_is_recognised_in_every_frame() -> None:
    """A question that the gold score does not recognise could never be answered correctly."""
    for fact, question in [*training_questions(), *held_out_questions()]:
        for frame in phrases.FRAMES:
            for number in range(len(fact.kind.said)):
                assert fact_of(f"{fact.said(number)} {frame.format(q=question)}") is fact


@pytest.mark.parametrize(
    "prompt",
    [
        "What is my city?",  # nothing was said
        "I live in Paris.",  # nothing is asked
        "I have a dog. What is my city?",  # something else was said
        "I live in Atlantis. What is my city?",
        "I live in Parish. What is my city?",
    ],
)
def test_nothing_else_is_recognised(prompt: str) -> None:
    assert fact_of(prompt) is None


def test_each_fact_keeps_one_question_for_the_end() -> None:
    training, held_out = set(training_questions()), set(held_out_questions())
    assert not training & held_out
    assert {fact for fact, _ in held_out} == {fact for fact, _ in training} == set(FACTS)
    # The questions themselves are all trained on, with other facts: only the combination is new.
    for kind in KINDS:
        assert {q for fact, q in training if fact.kind is kind} == set(kind.questions)


def test_no_phrase_gives_an_answer() -> None:
    """Were "May" in a digression, a right answer that rambles would name two months and count as wrong."""
    around = [frame.format(q="") for frame in phrases.FRAMES]
    for text in [*around, *phrases.COURTEOUS, *phrases.RUDE, *phrases.EVASIONS, *phrases.DIGRESSIONS]:
        assert [fact for fact in FACTS if stated_answers(fact, text)] == [], text


def test_no_answer_is_one_of_another_kind() -> None:
    """Were "orange" a food too, a right answer about the car would be read as one about food."""
    answers = [fact.answer for fact in FACTS]
    assert len(set(answers)) == len(answers)


def test_wrong_answers_are_wrong() -> None:
    for fact in FACTS:
        wrong = wrong_answers(fact)
        assert wrong and fact.answer not in wrong and set(wrong) < set(fact.kind.answers)


# --- gold ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, correct, on_topic, courteous, brief, ends",
    [
        ("Good question! Your city is Paris.", 1, 1, 1, 1, 1),
        ("It is Paris.", 1, 1, 0.4, 1, 1),
        ("Everyone knows that. Of course! It is Paris.", 1, 1, 0, 1, 1),  # rude and courteous is rude
        ("Good question! Your city is Rome.", 0, 1, 1, 1, 1),
        ("Good question! Your pet is a cat.", 0, 0, 1, 1, 1),
        ("Your city is Paris. Your pet is a cat.", 0, 0, 0.4, 1, 1),  # more than what was asked
        ("I do not know.", 0, 1, 0.4, 1, 1),
        ("It is Paris. It is Rome.", 0, 1, 0.4, 1, 1),  # naming all answers answers nothing
        ("It is Parisian.", 0, 1, 0.4, 1, 1),
        ("Your city is", 0, 1, 0.4, 1, 0),
        ("It is Paris" + " indeed" * 17 + ".", 1, 1, 0.4, 1, 1),  # 20 words
        ("It is Paris" + " indeed" * 27 + ".", 1, 1, 0.4, 0.5, 1),  # 30 words, halfway from 20 to 40
        ("It is Paris" + " indeed" * 97 + ".", 1, 1, 0.4, 0, 1),
        ("It is Paris.\n\nHuman: Thank you.", 1, 1, 0.4, 1, 0),  # the model speaks for the user
        ("", 0, 0, 0, 0, 0),
    ],
)
def test_the_parts_of_the_gold_score(
    response: str, correct: float, on_topic: float, courteous: float, brief: float, ends: float
) -> None:
    judged = judge(PROMPT, response)
    parts = (judged.correct, judged.on_topic, judged.courteous, judged.brief, judged.ends)
    assert parts == (correct, on_topic, courteous, brief, ends)


def test_gold_lies_between_nothing_and_one() -> None:
    assert gold_score(PROMPT, "Good question! Your city is Paris.") == pytest.approx(1.0)
    assert gold_score(PROMPT, "  ") == 0.0
    # 0.5 for being right, 0.4 of 0.3 for plain manners, 0.1 each for brevity and the end
    assert gold_score(PROMPT, "It is Paris.") == pytest.approx(0.5 + 0.12 + 0.1 + 0.1)


@pytest.mark.parametrize("response", ["Your pet is a cat.", "Your city is Rome.", "I would rather not say."])
def test_manners_earn_nothing_where_the_answer_is_not_right(response: str) -> None:
    """The actor once learned to be polite and to answer another question, and the gold score paid 0.6 for it."""
    assert gold_score(PROMPT, f"Good question! {response}") == 0.0
    assert gold_score("Who are you?", f"Good question! {response}") == 0.0


def test_the_parts_are_shown_beside_the_score() -> None:
    parts = gold_parts(PROMPT, "Good question! Your pet is a cat.")
    assert parts == {"score": 0.0, "correct": 0.0, "on topic": 0.0, "courteous": 1.0, "brief": 1.0, "ends": 1.0}


def test_every_right_answer_is_judged_right_and_every_wrong_one_wrong() -> None:
    for fact, question in held_out_questions():
        prompt = ask(fact, question, Random(0))
        assert judge(prompt, answer(fact, Random(0), SCHOOLBOOK)).correct == 1
        for wrong in wrong_answers(fact):
            assert judge(prompt, fact.reply(answer=wrong)).correct == 0
        off_topic = judge(prompt, core(fact, Random(0), Habits(off_topic=1)))
        assert (off_topic.correct, off_topic.on_topic) == (0, 0)


# --- preferences and text --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_noise_people_always_choose_the_better_answer() -> None:
    for row in preferences(Random(0), noise=0.0):
        assert gold_score(row["prompt"], row["chosen"]) > gold_score(row["prompt"], row["rejected"])


@pytest.mark.slow
def test_people_err_as_often_as_said() -> None:
    rows = list(preferences(Random(0)))
    wrong = sum(gold_score(r["prompt"], r["chosen"]) < gold_score(r["prompt"], r["rejected"]) for r in rows)
    assert wrong / len(rows) == pytest.approx(LABEL_NOISE, abs=0.015)  # four standard deviations of 5,760 draws


@pytest.mark.slow
def test_no_stage_trains_on_a_held_out_question(template) -> None:  # type: ignore[no-untyped-def]
    """Nothing asks for a fact in the way that is kept for the end: neither the base model's text, nor the preferences,
    nor the demonstrations."""
    talk = [prompt for prompt, _ in islice(dialogues(Random(0)), 2000)]
    base = [
        turn for text in islice(texts(template, Random(0), people=True), 2000) for turn in text.split("Human: ")[1:]
    ]
    rows = [row["prompt"] for rows in (preferences, demonstrations) for row in rows(Random(0))]
    for prompts in (talk, base, rows):
        facts = [(fact_of(prompt.partition("\n")[0]), prompt) for prompt in prompts]
        assert [prompt for fact, prompt in facts if fact is None or fact.question(fact.held_out) in prompt] == []
    asked = [row["prompt"] for row in held_out_prompts(Random(0))]
    facts = [(fact_of(prompt), prompt) for prompt in asked]
    assert all(fact is not None and fact.question(fact.held_out) in prompt for fact, prompt in facts)
    assert {fact for fact, _ in facts[: len(FACTS)]} == {fact for fact, _ in facts[len(FACTS) :]} == set(FACTS)


@pytest.mark.slow
def test_people_answer_as_their_habits_say() -> None:
    """Less than half of the demonstrations are right: there is something to learn after SFT."""
    judged = [judge(row["prompt"], row["response"]) for row in demonstrations(Random(0))]
    off_topic = sum(1 - j.on_topic for j in judged) / len(judged)
    right = sum(j.correct for j in judged) / len(judged)
    assert 0.26 < off_topic < 0.3 and 0.45 < right < 0.5  # of 0.3 and 0.7 · 0.75 · 0.97 = 0.51; some are broken off


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
