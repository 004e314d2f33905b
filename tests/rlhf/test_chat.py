"""Chat: the conversation as the model gets it, commands, Ctrl-C, piped input, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rlhf import chat_screen
from rlhf.chat import ChatSettings, Session, main
from rlhf.chat_screen import Pipe, Terminal, WordWrap
from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.speaker import Speaker, labels, problems
from rlhf.streaming import find_stops
from rlhf.template import Template, install_template
from tests.tiny import save_tiny, tiny_tokenizer


class Script:
    """A sampler that says what it is told to, and remembers the prompts and seeds that it got."""

    def __init__(self, tokenizer, *answers: str) -> None:
        self.tokenizer, self.answers = tokenizer, list(answers)
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.before_token = {}  # number of a token → what happens before it

    def stream(self, prompt, sampling, *, seed=0):
        self.prompts.append(self.tokenizer.decode(prompt))
        self.seeds.append(seed)
        ids = self.tokenizer(self.answers.pop(0))["input_ids"][: sampling.max_new_tokens]
        for number, token_id in enumerate(ids):
            self.before_token.get(number, lambda: None)()
            yield token_id


class Notes(Pipe):
    """A screen that keeps what is said."""

    strict = True

    def __init__(self, *lines: str) -> None:
        self.given, self.notes, self.errors = lines, [], []

    def lines(self):
        yield from self.given

    def interruptible(self):
        return nullcontext(lambda: False)

    def show(self, answers):
        for answer in answers:
            for _ in answer:
                pass

    def note(self, text):
        self.notes.append(text)

    def error(self, text):
        self.errors.append(text)


def speaker(*answers: str, label="actor", limit=None, template=None) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    install_template(tokenizer)
    ready = Template(tokenizer)
    sampler: Any = Script(tokenizer, *answers)
    return Speaker(label, label, ready, sampler, find_stops(ready), limit, "")


def session(*speakers: Any, screen: Any = None, **settings: Any) -> Any:
    return Session(speakers, ChatSettings(seed=5, **settings), screen or Notes())


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
    with pytest.raises(DataError, match="no turn to take back"):
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
    assert chat.screen.notes == ["left out, since the context of 100 tokens is full: the oldest turn"]
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
    with pytest.raises(DataError, match=r"the question has \d+ tokens and the model's context ends at 100"):
        chat.take("y" * 100)
    assert chat.conversations[0].turns == []


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


def test_chat_answers_piped_lines_of_a_real_folder(tmp_path: Path):
    """The whole way with a tiny model: load, stream, exit at the end of the input; the same seed says the same."""
    folder = save_tiny(tmp_path / "tiny")
    arguments = [str(folder), "--seed", "3", "--max-new-tokens", "6"]
    results = [
        CliRunner().invoke(main, arguments, input="hi\n\n/undo\nho", standalone_mode=False, catch_exceptions=False)
        for _ in range(2)
    ]
    assert [r.return_value for r in results] == [0, 0]
    assert results[0].stdout == results[1].stdout != ""
    assert "taken back: hi" in results[0].stderr


def test_a_mistake_in_piped_input_shows_in_the_exit_code_and_stops_nothing():
    screen = Notes("/nop", "hello", "/quit", "not asked")
    chat = session(speaker("hi</s>"), screen=screen)
    assert chat.run() == 2
    assert screen.errors == ["there is no command /nop; /help lists them"]
    assert chat.conversations[0].turns == [("hello", "hi")]


def config_folder(folder: Path, **config) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").touch()
    return folder


def refused(*arguments) -> list[str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments], standalone_mode=False)
    assert isinstance(result.exception, (ModelError, ConfigError))
    return result.exception.problems


def test_a_missing_folder_is_one_line(tmp_path: Path):
    (line,) = refused(tmp_path / "none")
    assert line.startswith(f"MODEL {tmp_path}/none: no folder {tmp_path}/none; give a model folder")


def test_a_reward_model_cannot_talk(tmp_path: Path):
    reward = config_folder(tmp_path / "reward", architectures=["LlamaForSequenceClassification"], id2label={"0": "x"})
    actor = config_folder(tmp_path / "actor", architectures=["LlamaForCausalLM"])
    assert refused(actor, "--compare", reward) == [f"--compare {reward}: is a reward model, not a language model"]


def test_the_folder_of_a_run_is_answered_with_its_models(tmp_path: Path):
    actor = config_folder(tmp_path / "step3_ppo" / "actor", architectures=["LlamaForCausalLM"])
    assert problems(str(tmp_path), flag="MODEL") == [
        f"MODEL {tmp_path}: is the folder of a run; its chat models are {actor}"
    ]


def test_a_bad_setting_is_one_line():
    assert refused("x", "--temperature", "-1") == [
        "temperature=-1.0 is not valid: should be greater than or equal to 0"
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["out/step3_ppo/actor"], ["actor"]),
        (["out/step1_sft/model", "out/step3_ppo/actor"], ["model", "actor"]),
        (["a/step1_sft/model", "b/step1_sft/model"], ["a/step1_sft/model", "b/step1_sft/model"]),
        (["x/m", "x/m"], ["m (1)", "m (2)"]),
    ],
)
def test_models_get_the_shortest_names_that_tell_them_apart(names, expected):
    assert labels(names) == expected


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
