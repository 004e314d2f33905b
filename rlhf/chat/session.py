"""python -m rlhf.chat MODEL: talk to a model, or to two side by side.

On a terminal: streamed answers, line editing, commands with a slash. With piped input: one question per line, answers
on standard output, everything else on standard error.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import click

from rlhf.chat.conversation import Answer, Conversation
from rlhf.chat.screen import Pipe, Terminal, open_screen
from rlhf.command import Command
from rlhf.config import Config, build, given, groups_of, options, setting
from rlhf.errors import EXIT_DONE, EXIT_USER, ConfigError, DataError, ModelError, UserError, nearest
from rlhf.files import expand_user, write_json
from rlhf.generation.speaker import Speaker, labels, load_speaker, problems
from rlhf.stage_config import Dtype


class ChatSettings(Config):
    """How the model answers."""

    help_groups: ClassVar = {
        "Models": (),
        "Answers": ("system", "max_new_tokens", "temperature", "top_p", "top_k", "seed"),
        "Loading": ("dtype", "trust_remote_code"),
    }

    temperature: float = setting(0.7, "temperature of the sampling; 0: always the most likely token", ge=0)
    top_p: float = setting(0.95, "probability of the smallest set of tokens to sample from; 1: all tokens", gt=0, le=1)
    top_k: int = setting(0, "number of most likely tokens to sample from; 0: all tokens", ge=0)
    max_new_tokens: int = setting(512, "longest answer, in tokens", ge=1)
    seed: int | None = setting(None, "seed of the sampling; default: a new one each time", ge=0)
    system: str = setting("", "system prompt: text that the model gets before the conversation")
    dtype: Dtype = setting("auto", "number format of the weights; auto: bf16 on GPUs that compute in it, else fp32")
    trust_remote_code: bool = setting(False, "permission to run code that comes with a model")


# Commands, each a line that begins with a slash: argument and meaning. The session's method is do_NAME.
COMMANDS = {
    "help": ("", "list the commands"),
    "clear": ("", "forget the conversation; the system prompt stays"),
    "system": ("[TEXT]", "show or set the system prompt; /system none removes it"),
    "retry": ("", "another answer to the last question"),
    "undo": ("", "remove the last question and its answer"),
    "save": ("[FILE]", "write the conversation to a JSON file"),
    "quit": ("", "leave; Ctrl-D and two Ctrl-C also do"),
}


class Session:
    """One conversation with each speaker; its input are lines."""

    def __init__(self, speakers: Iterable[Speaker], settings: ChatSettings, screen: Pipe) -> None:
        self.conversations = [Conversation(speaker) for speaker in speakers]
        self.settings, self.screen = settings, screen
        self.seed = secrets.randbits(31) if settings.seed is None else settings.seed
        self.asked = 0  # answers drawn so far: each has its own random numbers
        self.open = True
        self.failed = False
        if settings.system:
            self._system(settings.system)

    def run(self) -> int:
        """Take lines until the input ends; the exit code. A mistake in piped input shows in it."""
        for line in self.screen.lines():
            try:
                self.take(line)
            except UserError as error:
                self.failed = True
                for problem in error.problems:
                    self.screen.error(problem)
            if not self.open:
                break
        return EXIT_USER if self.failed and self.screen.strict else EXIT_DONE

    def take(self, line: str) -> None:
        """A question or a command. Raises UserError."""
        line = line.strip()
        name, _, rest = line[1:].partition(" ")
        if line.startswith("/") and "/" not in name:
            if name not in COMMANDS:
                raise ConfigError(f"there is no command /{name}{nearest(name, COMMANDS) or '; /help lists them'}")
            getattr(self, f"do_{name}")(rest.strip())
        elif line:
            self.ask(line)

    def ask(self, question: str) -> None:
        """Each speaker's answer, shown as it is written and kept as a turn."""
        from rlhf.generation.drawing import Sampling

        s = self.settings
        sampling = Sampling(s.max_new_tokens, temperature=s.temperature, top_p=s.top_p, top_k=s.top_k)
        with self.screen.interruptible() as interrupted:
            answers = []
            for conversation in self.conversations:
                prompt = conversation.fit(question, s.max_new_tokens)
                if prompt.skipped:
                    self._say_skipped(conversation, prompt.skipped)
                seed = self.seed + self.asked
                answers.append(Answer(conversation.speaker, prompt, sampling, seed=seed, interrupted=interrupted))
            self.asked += 1
            self.screen.show(answers)
        self._keep(question, answers)

    def _say_skipped(self, conversation: Conversation, skipped: int) -> None:
        turns = "the oldest turn" if skipped == 1 else f"the {skipped} oldest turns"
        limit, who = conversation.speaker.limit, self._who(conversation.speaker)
        self.screen.note(f"{who}the context of {limit} tokens is full; left out: {turns}")

    def _who(self, speaker: Speaker) -> str:
        return f"{speaker.label}: " if len(self.conversations) > 1 else ""

    def _keep(self, question: str, answers: list[Answer]) -> None:
        if answers[0].ended == "interrupted" and not any(answer.text for answer in answers):
            self.screen.note("stopped before the first word; the question is removed")
            return
        for conversation, answer in zip(self.conversations, answers, strict=True):
            conversation.turns.append((question, answer.text))
            if answer.ended == "limit":
                self.screen.note(f"{self._who(answer.speaker)}cut after {answer.tokens} tokens")
        if answers[0].ended == "interrupted":
            self.screen.note("stopped; /undo removes the turn")

    # --- commands ----------------------------------------------------------------------------------------------------

    def do_help(self, _: str) -> None:
        for name, (argument, text) in COMMANDS.items():
            self.screen.note(f"{f'/{name} {argument}':<16}{text}")
        self.screen.note("Ctrl-C stops an answer. A line with anything else is a question.")

    def do_clear(self, _: str) -> None:
        for conversation in self.conversations:
            conversation.turns.clear()
        self.screen.note("the conversation is forgotten")

    def do_system(self, text: str) -> None:
        if not text:
            self.screen.note(self.conversations[0].system or "no system prompt; /system TEXT sets one")
            return
        self._system("" if text == "none" else text)
        self.screen.note("the system prompt is removed" if text == "none" else "the system prompt is set")

    def _system(self, text: str) -> None:
        without = [c.speaker.label for c in self.conversations if text and not c.speaker.has_system_turn()]
        if without:
            raise ConfigError(
                f"the chat template of {', '.join(without)} has no place for a system prompt; put it in the question"
            )
        for conversation in self.conversations:
            conversation.system = text

    def do_retry(self, _: str) -> None:
        question = self._remove_last()
        if self.settings.temperature == 0:
            self.screen.note("the temperature is 0, so the answer is the same")
        self.ask(question)

    def do_undo(self, _: str) -> None:
        self.screen.note(f"removed: {self._remove_last()}")

    def _remove_last(self) -> str:
        if not self.conversations[0].turns:
            raise DataError("there is no turn yet")
        question, _ = self.conversations[0].turns[-1]
        for conversation in self.conversations:
            conversation.turns.pop()
        return question

    def do_save(self, name: str) -> None:
        try:
            path = expand_user(Path(name or time.strftime("chat-%Y%m%d-%H%M%S.json")))
        except ValueError as error:
            raise DataError(str(error)) from None
        if path.exists():
            raise DataError(f"{path} exists; give another name")
        if not path.parent.is_dir():
            raise DataError(f"there is no folder {path.parent}")
        write_json(path, self.record())
        self.screen.note(f"saved to {path}")

    def record(self) -> dict[str, Any]:
        """The conversation as it is saved."""
        models = [
            {"label": c.speaker.label, "model": c.speaker.name, "messages": c.messages()} for c in self.conversations
        ]
        return {"settings": {**self.settings.model_dump(mode="json"), "seed": self.seed}, "models": models}

    def do_quit(self, _: str) -> None:
        self.open = False


@click.command("python -m rlhf.chat", cls=Command, groups=groups_of(ChatSettings, Models=("compare",)))
@click.argument("model")
@click.option("--compare", metavar="MODEL", help="second model, which answers beside the first")
@options(ChatSettings)
def main(model: str, compare: str | None, **flags: Any) -> int:
    """Chat with MODEL: a folder that a stage wrote, a hub name or an alias such as opt-1.3b."""
    settings = build(ChatSettings, given(flags), where="")
    names = [model] if compare is None else [model, compare]
    found = [
        problem
        for name, flag in zip(names, ("MODEL", "--compare"), strict=False)
        for problem in problems(name, flag=flag, trust_remote_code=settings.trust_remote_code)
    ]
    if found:
        raise ModelError(*found)
    screen = open_screen(COMMANDS)
    speakers = []
    for name, label in zip(names, labels(names), strict=True):
        if isinstance(screen, Terminal):
            screen.note(f"loading {name}")
        speakers.append(
            load_speaker(name, label=label, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)
        )
        if isinstance(screen, Terminal):
            screen.note(f"{label}: {speakers[-1].summary}")
    session = Session(speakers, settings, screen)
    if isinstance(screen, Terminal):
        screen.note("/help lists the commands; Ctrl-C stops an answer")
    try:
        return session.run()
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
