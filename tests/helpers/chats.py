"""Chats whose models answer as told, on a screen that keeps its text: shared by tests of chat."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from rlhf.chat.screen import Pipe
from rlhf.chat.session import ChatSettings, Session
from rlhf.generation.speaker import Speaker
from rlhf.generation.streaming import find_stops
from rlhf.template import Template, install_template
from tests.helpers.tiny import tiny_tokenizer


class Script:
    """A sampler that answers as told, and keeps the prompts and seeds that it got."""

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
