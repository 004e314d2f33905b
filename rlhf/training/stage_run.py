"""The bookkeeping that the loops of all stages share: resume, metrics, progress, signals, bad steps, checkpoints.

A loop uses it and keeps its own order:

    stage = StageRun(config, name="SFT", total=total, engines={"model": engine}, sources=data.report["sources"])
    if stage.is_new:
        stage.state = {"before": evaluate()}
        stage.log(stage.state)
    with stage.steps() as steps:
        for step in steps:
            ...
            stage.log({"sft/loss": loss}, shown=("sft/loss",))
            stage.save(skipped=not applied, rows=lambda: rows_of_the_step)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rlhf import console
from rlhf.console.bars import Bar
from rlhf.metrics import MetricsLog
from rlhf.stage_config import RunSettings
from rlhf.training import distributed
from rlhf.training.checkpoint import Checkpoints, save_when_due
from rlhf.training.engine import TrainEngine
from rlhf.training.engine_state import Extra
from rlhf.training.guard import Guard
from rlhf.training.interrupt import Interrupts, noted


class StageRun:
    """One run of a stage, new or resumed. All ranks make one and call its methods alike.

    `state` is the stage's own: what it puts there, as JSON values, comes back when the run is resumed. `is_new` says
    that there was no checkpoint; then `state` is the one that was given. `number` is that of the current step, counted
    from 1, and 0 before the first step.
    """

    def __init__(
        self,
        config: RunSettings,
        *,
        name: str,
        total: int,
        engines: Mapping[str, TrainEngine],
        sources: Iterable[Mapping[str, Any]],
        state: Mapping[str, Any] | None = None,
        extras: Mapping[str, Extra] | None = None,
        unit: str = "step",
    ) -> None:
        """Find the newest checkpoint and put its state back; cut the metrics after it.

        `sources` are those of the data's report: a run cannot be resumed with other data. `extras` are tensors beside
        an engine's own, by its name. Raises DataError for other data, TrainingError for another model.
        """
        self.config, self.name, self.total, self.unit = config, name, total, unit
        self._engines, self._extras = engines, extras
        fingerprints = [source["fingerprint"] for source in sources]
        self._checkpoints = Checkpoints(
            config.output_dir / "checkpoints", keep=config.keep_checkpoints, sources=fingerprints
        )
        found = self._checkpoints.latest()
        self.is_new = found is None
        self.start, self.state = (0, dict(state or {})) if found is None else (found.step, found.state)
        self.number = self.start
        if found is not None:
            found.restore(engines, extras)
            console.say(f"resumed after {unit} {self.start} of {total}")
        self._log = MetricsLog(
            config.output_dir,
            trackers=config.trackers,
            config=config.model_dump(mode="json"),
            resume_step=None if self.is_new else self.start,
        )
        self._guard = Guard(config.output_dir / "bad_batches", limit=config.max_skipped_steps)
        self._bar: Bar | None = None
        self._interrupts = Interrupts()

    @property
    def is_last(self) -> bool:
        """Whether this is the last step."""
        return self.number == self.total

    def is_due(self, every: int | None) -> bool:
        """Whether something is due at this step: it is at each `every`th step (None: at none) and at the last one."""
        return self.is_last or (every is not None and self.number % every == 0)

    @contextmanager
    def steps(self) -> Iterator[Iterator[int]]:
        """The steps that are still to be done, counted from 0, each seeded by its number.

        While inside, a progress bar is shown and signals wait for the end of the step.
        """
        bar = console.progress(self.name, total=self.total, unit=self.unit, start=self.start)
        try:
            with bar as self._bar, noted() as self._interrupts:
                yield self._seeded_steps()
        finally:
            self._log.close()

    def _seeded_steps(self) -> Iterator[int]:
        for step in range(self.start, self.total):
            self.number = step + 1
            distributed.seed_step(self.config.seed, step)
            yield step

    def log(self, metrics: Mapping[str, float], *, shown: Sequence[str] = (), always: bool = False) -> None:
        """Write the step's metrics if `log_every` makes it due, or `always`; the bar shows those named in `shown`."""
        if always or self.is_due(self.config.log_every):
            self._log.log(self.number, metrics)
        if self._bar is not None:
            self._bar.update(self.number, {name: metrics[name] for name in shown if name in metrics})

    def save(
        self,
        *,
        score: float | None = None,
        skipped: bool = False,
        rows: Callable[[], Iterable[Any]] = tuple,
    ) -> None:
        """End the step. It writes a checkpoint if `save_every` makes it due, after the last step, and when a signal has
        arrived; the signal then ends the process.

        The checkpoint with the best `score` (higher is better) stays beside the newest. When the step was `skipped`,
        `rows()` gives what this rank keeps of it, as JSON values; after `max_skipped_steps` of them in a row it
        writes a checkpoint and raises TrainingError.
        """
        save = partial(
            save_when_due,
            self._checkpoints,
            self._interrupts,
            step=self.number,
            total=self.total,
            engines=self._engines,
            extras=self._extras,
            state=self.state,
            score=score,
        )
        self._guard.watch(step=self.number, skipped=skipped, batch=rows, save=partial(save, every=1))
        save(every=self.config.save_every)
