"""Chat: the model gets the conversation as it was, as much as fits its context, and commands change it as they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlhf.errors import ConfigError, DataError
from tests.helpers.chats import session, speaker


def test_the_model_gets_the_whole_conversation_in_its_template():
    actor = speaker("Paris.</s>", "Madrid.</s>")
    chat = session(actor, system="Be brief.")
    chat.take("France?\n")
    chat.take("Spain?\n")
    assert actor.sampler.prompts[1] == (
        "Be brief.\n\nHuman: France?\n\nAssistant: Paris.</s>\n\nHuman: Spain?\n\nAssistant:"
    )
    assert chat.conversations[0].turns == [("France?", "Paris."), ("Spain?", "Madrid.")]


def test_an_answer_ends_where_the_model_invents_the_next_turn():
    """A model that forgot its end token goes on as the user; neither the screen nor the history shows that."""
    actor = speaker("Paris.\n\nHuman: And Spain?\n\nAssistant: Madrid.")
    chat = session(actor)
    chat.take("France?")
    assert chat.conversations[0].turns == [("France?", "Paris.")]


def test_retry_draws_another_answer_and_undo_takes_the_turn_back():
    """With the same seed /retry would say the same again."""
    actor = speaker("one</s>", "two</s>", "three</s>")
    chat = session(actor)
    for line in ("first", "second", "/retry"):
        chat.take(line)
    assert chat.conversations[0].turns == [("first", "one"), ("second", "three")]
    assert len(set(actor.sampler.seeds)) == 3
    chat.take("/undo")
    assert chat.conversations[0].turns == [("first", "one")]
    chat.take("/clear")
    assert chat.conversations[0].turns == []
    with pytest.raises(DataError, match="there is no turn yet"):
        chat.take("/retry")


def test_system_sets_shows_and_removes():
    actor = speaker("yes</s>")
    chat = session(actor)
    chat.take("/system Speak like a sailor.")
    chat.take("/system")
    assert chat.screen.notes[-1] == "Speak like a sailor."
    chat.take("Well?")
    assert actor.sampler.prompts[0].startswith("Speak like a sailor.\n\nHuman: Well?")
    chat.take("/system none")
    assert chat.conversations[0].system == ""


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    ],
    ids=["refuses it", "leaves it out"],
)
def test_a_template_without_a_system_turn_is_not_given_one_in_silence(template):
    with pytest.raises(ConfigError, match="has no place for a system prompt"):
        session(speaker(template=template), system="Be brief.")


def test_save_writes_the_conversation_and_overwrites_nothing(tmp_path: Path):
    chat = session(speaker("Paris.</s>"), system="Be brief.")
    chat.take("France?")
    file = tmp_path / "talk.json"
    chat.take(f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved["models"][0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "France?"},
        {"role": "assistant", "content": "Paris."},
    ]
    assert saved["settings"]["seed"] == 5
    with pytest.raises(DataError, match="exists; give another name"):
        chat.take(f"/save {file}")
    with pytest.raises(DataError, match="there is no folder"):
        chat.take(f"/save {tmp_path}/missing/talk.json")


def test_an_unknown_command_is_answered_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"there is no command /retri; did you mean 'retry'\?"):
        session(speaker()).take("/retri")


def test_a_path_is_a_question():
    """/etc/hosts is no command: commands hold no second slash."""
    chat = session(speaker("A file.</s>"))
    chat.take("/etc/hosts is what?")
    assert chat.conversations[0].turns == [("/etc/hosts is what?", "A file.")]


def test_the_oldest_turns_are_left_out_when_the_context_is_full():
    """One byte is one token: a prompt of one question has 23 tokens and a finished turn 31. With a context of 100, of
    which the answer gets 40, 31 + 23 fit and 31 + 31 + 23 do not."""
    actor = speaker("aaaa</s>", "bbbb</s>", "cccc</s>", limit=100)
    chat = session(actor, max_new_tokens=40)
    for question in ("one?", "two?", "six?"):
        chat.take(question)
    assert [re.findall("Human: (.{4})", prompt) for prompt in actor.sampler.prompts] == [
        ["one?"],
        ["one?", "two?"],
        ["two?", "six?"],
    ]
    assert chat.screen.notes == ["the context of 100 tokens is full; left out: the oldest turn"]
    assert len(chat.conversations[0].turns) == 3


def test_a_long_question_gets_the_room_that_is_left():
    """A question of more than half the context is still asked; the answer has what remains."""
    actor = speaker("x" * 99, limit=100)
    chat = session(actor, max_new_tokens=80)
    chat.take("y" * 60)
    used = len(actor.sampler.prompts[0])
    assert 60 < used < 100
    assert chat.conversations[0].turns == [("y" * 60, "x" * (100 - used))]


def test_a_question_longer_than_the_context_is_refused():
    chat = session(speaker(limit=100))
    with pytest.raises(DataError, match=r"the question has \d+ tokens and the model's context has 100"):
        chat.take("y" * 100)
    assert chat.conversations[0].turns == []
