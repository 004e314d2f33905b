"""Chat on a terminal and through pipes: Ctrl-C stops what it should, lines wrap, and answers stay apart and plain."""

from __future__ import annotations

import os
import re
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.chat import screen as chat_screen
from rlhf.chat.screen import Pipe, Terminal, WordWrap
from tests.helpers.chats import Notes, session, speaker


@pytest.fixture
def terminal(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    return Terminal(["help", "quit"])


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(terminal, capsys):
    actor = speaker("Once upon a time</s>", "Yes.</s>")
    actor.sampler.before_token[9] = lambda: os.kill(os.getpid(), signal.SIGINT)
    chat = session(actor, screen=terminal)
    before = signal.getsignal(signal.SIGINT)
    chat.take("A story?")
    assert chat.conversations[0].turns == [("A story?", "Once upon")]
    assert signal.getsignal(signal.SIGINT) is before
    actor.sampler.before_token.clear()
    chat.take("Another?")
    assert "stopped" in capsys.readouterr().out
    assert chat.conversations[0].turns[-1] == ("Another?", "Yes.")


def test_a_second_ctrl_c_ends_an_answer_that_does_not_get_on(terminal):
    """The first is only looked at between tokens; a model may need long for one."""
    actor = speaker("Once upon a time</s>")

    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    actor.sampler.before_token[4] = twice
    chat = session(actor, screen=terminal)
    chat.take("A story?")
    assert chat.conversations[0].turns == [("A story?", "Once")]


def test_ctrl_c_before_the_first_word_takes_the_question_back(terminal):
    actor = speaker("Once</s>")
    actor.sampler.before_token[0] = lambda: os.kill(os.getpid(), signal.SIGINT)
    chat = session(actor, screen=terminal)
    chat.take("A story?")
    assert chat.conversations[0].turns == []


def typed(monkeypatch, *events):
    """`input` as if these were typed: lines, or the exceptions of Ctrl-C and Ctrl-D."""
    waiting = list(events)

    def read(_prompt):
        event = waiting.pop(0)
        if isinstance(event, str):
            return event
        raise event

    monkeypatch.setattr("builtins.input", read)


def test_ctrl_c_twice_at_the_prompt_leaves_and_once_does_not(terminal, monkeypatch):
    typed(monkeypatch, KeyboardInterrupt, "a", KeyboardInterrupt, "b", KeyboardInterrupt, KeyboardInterrupt, "c")
    assert list(terminal.lines()) == ["a", "b"]


def test_ctrl_d_leaves(terminal, monkeypatch):
    typed(monkeypatch, "a", EOFError, "b")
    assert list(terminal.lines()) == ["a"]


def test_control_characters_of_a_model_do_not_reach_the_terminal(capsys):
    """A model that writes escape sequences could otherwise recolour the screen or set the window's title."""
    chat = session(speaker("a\x1b[31mb\x07</s>"), screen=Pipe())
    chat.take("?")
    assert capsys.readouterr().out == "a[31mb\n"


def test_two_models_answer_each_in_its_own_conversation(capsys):
    sft, ppo = speaker("one</s>", "two</s>", label="sft"), speaker("three</s>", "four</s>", label="ppo")
    chat = session(sft, ppo, screen=Pipe())
    chat.take("first")
    chat.take("second")
    assert capsys.readouterr().out == "[sft] one\n[ppo] three\n[sft] two\n[ppo] four\n"
    assert "Assistant: one" in sft.sampler.prompts[1]
    assert "Assistant: three" in ppo.sampler.prompts[1]


def test_two_models_stand_side_by_side_on_a_wide_terminal(terminal, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    session(speaker("one</s>", label="sft"), speaker("three\nlines\nhere</s>", label="ppo"), screen=terminal).take("?")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sft", "ppo"] in lines
    assert ["one", "three"] in lines


def screen_of(output: str) -> list[str]:
    """The lines of a terminal after `output`, which may move left and erase to the end of the line."""
    lines = [""]
    for part in re.findall(r"\033\[\d+D\033\[K|\n|[^\n\033]", output):
        if part == "\n":
            lines.append("")
        elif part[0] == "\033":
            lines[-1] = lines[-1][: -int(part[2:].partition("D")[0])]
        else:
            lines[-1] += part
    return lines


@given(text=st.text(alphabet="abcdef \n", max_size=80), width=st.integers(5, 20))
def test_words_are_wrapped_whole(text, width):
    """Words that fit a line are never cut, no line is too long, and no letter is lost."""
    wrap = WordWrap(lambda: width)
    lines = screen_of("".join(map(wrap.add, text)))
    assert max(map(len, lines)) < width
    assert "".join(lines).replace(" ", "") == re.sub(r"\s", "", text)
    if max(map(len, text.split()), default=0) < width:
        assert [w for line in lines for w in line.split()] == text.split()


def test_a_mistake_in_piped_input_shows_in_the_exit_code_and_stops_nothing():
    screen = Notes("/nop", "hello", "/quit", "not asked")
    chat = session(speaker("hi</s>"), screen=screen)
    assert chat.run() == 2
    assert screen.errors == ["there is no command /nop; /help lists them"]
    assert chat.conversations[0].turns == [("hello", "hi")]


def test_history_is_kept_for_the_next_time_and_for_nobody_else(terminal, monkeypatch, tmp_path):
    import readline

    readline.clear_history()
    typed(monkeypatch, "a question", EOFError)
    readline.add_history("a question")  # what input() does on a terminal
    list(terminal.lines())
    file = tmp_path / "rlhf" / "chat_history"
    assert "a question" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    readline.clear_history()


def test_output_that_is_no_terminal_is_plain(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert type(chat_screen.open_screen(["help"])) is Pipe
