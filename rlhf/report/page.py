"""python -m rlhf.report RUN: one self-contained page about a run, `report.html` in the run's folder.

The template engine escapes everything that comes from data, models and files. Imports no torch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from markupsafe import Markup

from rlhf.command import Command, UserPath
from rlhf.config import read_yaml
from rlhf.console import say
from rlhf.console.text import duration, figure
from rlhf.errors import EXIT_DONE, DataError, error_lines
from rlhf.evaluate.comparison import KINDS, score_texts, summary
from rlhf.files import write_text
from rlhf.metrics import FILE_NAME as METRICS_NAME
from rlhf.metrics import read_metrics
from rlhf.report.charts import Line, bar_chart, line_chart
from rlhf.stages.result import CONFIG_NAME, DONE_NAME, StageResult, read_result
from rlhf.stages.spec import Chart, Layout, StageSpec, spec_of

REPORT_NAME = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Drawn:
    """A chart with its recorded metrics, the last value of the first one, and the picture."""

    chart: Chart
    names: list[str]
    last: str
    picture: Markup


@dataclass
class StageView:
    """One stage as the template shows it."""

    name: str
    spec: StageSpec | None
    layout: Layout
    state: str  # "finished", "not finished" or "not run"
    result: StageResult | None
    figures: list[tuple[str, str]] = field(default_factory=list)
    charts: list[Drawn] = field(default_factory=list)
    more: list[Drawn] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def time(self) -> str:
        return duration(self.result.seconds) if self.result else ""


def write_report(output_dir: Path) -> Path:
    """Write `report.html` of a run, finished or not. Raises DataError when the folder holds no run."""
    path = output_dir / REPORT_NAME
    write_text(path, render(output_dir).encode("utf-8", "replace").decode("utf-8"))
    return path


def render(output_dir: Path) -> str:
    """The page. A file that cannot be read is named on it and left out."""
    from jinja2 import Environment, StrictUndefined

    if not output_dir.is_dir():
        raise DataError(f"no folder {output_dir}; give the output folder of a run")
    unreadable: list[str] = []

    def read(reader: Callable[[Path], Any], path: Path) -> Any:
        try:
            return reader(path) if path.exists() else None
        except Exception as error:  # one bad file must not cost the rest of the page
            unreadable.append(f"{path.relative_to(output_dir)}: {error_lines(error)[0][0]}")
            return None

    record = read(read_yaml, output_dir / "pipeline.yaml") or {}
    stages = [_stage_view(output_dir / name, read) for name in _stage_names(output_dir, record)]
    if not record and all(stage.state == "not run" for stage in stages):
        raise DataError(f"{output_dir} is not the folder of a run: it has no pipeline.yaml and no stage's metrics")
    run = record.get("run")
    evaluation = read(_evaluation, output_dir / "evaluation.json")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(figure=shown_figure, flat=flat)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=output_dir.resolve().name,
        written=time.strftime("%Y-%m-%d %H:%M"),
        headlines=_headlines(stages, evaluation),
        stages=stages,
        total=duration(sum(s.result.seconds for s in stages if s.result)),
        evaluation=evaluation,
        record=record,
        run=run if isinstance(run, dict) else {},
        unreadable=unreadable,
    )


def _stage_names(output_dir: Path, record: Mapping[str, Any]) -> list[str]:
    """The stages of a run that have settings or a folder, in their order; folders are named like packages."""
    run = record.get("run")
    listed = run.get("stages") if isinstance(run, dict) else None
    if not isinstance(listed, list):  # a run of a version before 0.2
        listed = [name for name in record if name not in ("pipeline", "prepare", "evaluate", "run")]
    recorded = list(map(str, listed))
    begun = [path.parent.name for name in (CONFIG_NAME, METRICS_NAME) for path in output_dir.glob(f"*/{name}")]
    names = [*recorded, *begun]
    numbers = {name: spec.number if (spec := spec_of(name)) else math.inf for name in names}
    return sorted(numbers, key=lambda name: (numbers[name], name))


def _stage_view(folder: Path, read: Callable[[Callable[[Path], Any], Path], Any]) -> StageView:
    spec = spec_of(folder.name)
    layout = spec.layout if spec else Layout(folder.name)
    rows = read(read_metrics, folder / METRICS_NAME) or []
    result = read(lambda marker: read_result(marker.parent), folder / DONE_NAME)
    state = "finished" if result else "not finished" if rows or (folder / CONFIG_NAME).exists() else "not run"
    view = StageView(folder.name, spec, layout, state, result, settings=read(read_yaml, folder / CONFIG_NAME) or {})
    if result:
        view.figures = [(text, figure(result.metrics[n])) for n, text in layout.results.items() if n in result.metrics]
    series = _series(rows)
    view.charts = [drawn for chart in layout.charts if (drawn := _draw(chart, series))]
    known = {name for chart in layout.charts for name in _named(chart, series)}
    view.more = [
        drawn for name in sorted(series) if name not in known and (drawn := _draw(Chart(name, (name,)), series))
    ]
    return view


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Metric → (step, value) in the order of the file."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    return series


def _draw(chart: Chart, series: Mapping[str, list[tuple[float, float]]]) -> Drawn | None:
    """The chart; None if none of its metrics was recorded."""
    lines = [Line(_words(name), series[name], chart.noisy) for name in _named(chart, series)]
    if not lines:
        return None
    last = next((figure(y) for _, y in reversed(lines[0].points) if math.isfinite(y)), "")
    picture = line_chart(lines, floor=chart.floor, ceiling=chart.ceiling)
    return Drawn(chart, [line.name for line in lines], last, picture)


def _named(chart: Chart, series: Mapping[str, Any]) -> list[str]:
    """The recorded metrics of a chart; `group/*` are all that begin with `group/`."""
    names = []
    for name in chart.names:
        beginning = name.removesuffix("*")
        names += [name] if name in series else [n for n in series if name != beginning and n.startswith(beginning)]
    return names


def _words(name: str) -> str:
    """`ppo/approx_kl` → `approx kl`."""
    return name.rpartition("/")[2].replace("_", " ")


# --- evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """`evaluation.json` as the template shows it."""

    labels: list[str]
    columns: list[str]
    rows: list[list[str]]
    charts: list[tuple[str, Markup]]
    samples: list[dict[str, Any]]
    count: int
    settings: dict[str, Any]


def _evaluation(path: Path) -> Evaluation:
    result = json.loads(path.read_text(encoding="utf-8"))
    columns, rows = summary(result)
    models = result["models"]
    figures = []
    for kind, text in KINDS.items():
        if all(kind in model for model in models):
            scores = [model[kind] for model in models]
            figures += [(text, scores), *_parts(scores)]
    charts = [
        (name.capitalize(), bar_chart([(m["label"], f["mean"], f["stderr"]) for m, f in zip(models, of, strict=True)]))
        for name, of in figures
    ]
    labels = [model["label"] for model in models]
    samples = [
        {"prompt": sample["prompt"], "responses": [_response(sample["responses"], label) for label in labels]}
        for sample in result["samples"]
    ]
    return Evaluation(labels, columns, rows, charts, samples, result["prompts"]["count"], result.get("settings", {}))


def _parts(scores: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The parts of the models' scores: (part, its mean and error for each model)."""
    return [(part, [score["parts"][part] for score in scores]) for part in scores[0].get("parts", {})]


def _response(responses: Mapping[str, Any], label: str) -> dict[str, Any]:
    response = responses[label]
    ended = "" if response["ended"] else "not ended"
    facts = [*score_texts(response), f"{response['length']} tokens", ended]
    return {"label": label, "text": response["text"], "facts": facts}


# --- small things ----------------------------------------------------------------------------------------------------


def _headlines(stages: Sequence[StageView], evaluation: Evaluation | None) -> list[tuple[str, str, str]]:
    """The most important figures: (name, value, text beside it)."""
    found = []
    for stage in stages:
        metrics = stage.result.metrics if stage.result else {}
        for headline in stage.layout.headlines:
            if headline.metric in metrics:
                before = metrics.get(headline.before)
                beside = "" if before is None else f"from {figure(before)}"
                found.append((headline.text, figure(metrics[headline.metric]), beside))
    if evaluation and len(evaluation.columns) > 3:  # there are scores
        first = evaluation.rows[0]
        titles = [each.titled(s.settings) for s in reversed(stages) if s.spec for each in s.spec.outputs]
        compared = {row[0]: row for row in evaluation.rows}
        last = next((compared[title] for title in titles if title in compared), evaluation.rows[-1])
        found.append(
            (
                f"evaluation {evaluation.columns[1]} of {last[0]}",
                last[1].split()[0],
                f"{first[0]} {first[1].split()[0]}",
            )
        )
    return found


def shown_figure(value: Any) -> str:
    """A setting's value as text: numbers are short, an empty value is a dash."""
    if value is None or value in ("", []):
        return "–"
    if isinstance(value, list):
        return ", ".join(map(shown_figure, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return figure(value) if isinstance(value, float) else str(value)


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as rows: {"a": {"b": 1}} → [("a.b", 1)]; mappings in a list are numbered."""
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        value = dict(enumerate(value, start=1))
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [row for key, inner in value.items() for row in flat(inner, f"{prefix}.{key}" if prefix else str(key))]


@click.command("python -m rlhf.report", cls=Command)
@click.argument("output_dir", metavar="RUN", type=UserPath())
def main(output_dir: Path) -> int:
    """Write report.html into RUN, the output folder of a run, finished or not."""
    say(f"report: {write_report(output_dir)}")
    return EXIT_DONE
