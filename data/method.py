"""What the stages of a run read, by the run's method: for `data.show` and `data.check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from data.config import DataSettings, PreferenceSettings
from data.divide import KINDS, divide
from data.encode import Kind
from data.store import Store
from rlhf.config import build, given

KINDS_OF: dict[str, dict[int, Kind]] = {
    "ppo": KINDS,
    "dpo": {1: "demonstrations", 2: "preferences"},
    "kto": {1: "demonstrations", 2: "unpaired"},
}
Division = dict[int, tuple[np.ndarray, np.ndarray, dict[str, int]]]
OPTIONS = ["method", "learn_demonstrations"]


def method_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say of which method the run is."""
    function = click.option(
        "--learn-demonstrations/--no-learn-demonstrations",
        default=True,
        show_default=True,
        help="with kto, responses of sources that have no bad ones; they count as good",
    )(function)
    return click.option(
        "--method",
        type=click.Choice(list(KINDS_OF)),
        default="ppo",
        show_default=True,
        help="method of the run, as for train.py; it decides what stage 2 reads",
    )(function)


@dataclass(frozen=True)
class Method:
    """The settings of a run's data, and the kinds of rows that its stages read. `demonstrations`: whether single
    responses include those of sources without bad ones."""

    settings: DataSettings
    kinds: Mapping[int, Kind]
    demonstrations: bool = True

    @classmethod
    def of(cls, name: str, flags: Mapping[str, Any], *, demonstrations: bool = True) -> Method:
        """That of `--method NAME`, with the settings that the flags give."""
        config_class = DataSettings if name == "ppo" else PreferenceSettings
        return cls(build(config_class, given(flags), where=""), KINDS_OF[name], demonstrations)

    @property
    def needs(self) -> dict[str, Any]:
        """The stage that a run cannot do without, as `data.preflight` asks for it; none of a run that has a stage 3."""
        if 3 in self.kinds:
            return {}
        return {"stage": 2, "kind": self.kinds[2], "demonstrations": self.demonstrations}

    def divisions(self, stores: Sequence[Store], evaluation: Sequence[Store]) -> Division:
        """What each stage trains on and holds out (`data.divide`)."""
        return {
            stage: divide(stores, evaluation, self.settings, stage=stage, kind=kind, demonstrations=self.demonstrations)
            for stage, kind in self.kinds.items()
        }
