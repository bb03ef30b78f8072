"""The report of a pipeline: its stages in a row, what each reached, its curves, and the tables of its evaluations.

Built from the directory alone, like a run's (`troupe.report.report`), whose pages it links to; one file without a
network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from troupe.errors import DataError
from troupe.files import read_json
from troupe.ops.pipeline import STATE_FILE, StageRecord
from troupe.processes.progress import duration
from troupe.report.charts import Chart, chart_groups, short
from troupe.report.page import write_page
from troupe.report.report_data import RunRecord, day_and_time, read_run
from troupe.report.report_titles import LEARNING, title_of

MOST_KEY_METRICS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """A stage as the report shows it."""

    name: str
    record: StageRecord
    run: RunRecord | None
    """Its run directory, where it has one."""
    measured: Mapping[str, Any]
    """Its metrics.json, where it has one."""
    links: Mapping[str, str]
    """What is beside the page: label -> relative path, so that the directory can be moved."""

    @property
    def inputs(self) -> list[str]:
        """Return the stages from which it takes something."""
        return list(dict.fromkeys(item["stage"] for given in self.record.inputs.values() for item in given))


def build_pipeline_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of the pipeline in `directory`; return where it is."""
    directory = Path(directory)
    saved = read_json(directory / STATE_FILE)
    if not isinstance(saved, dict):
        raise DataError(f"{directory} is not a pipeline's directory: it has no {STATE_FILE}")
    stages = [view for name, values in saved["stages"].items() if (view := _view(directory, name, values)) is not None]
    return write_page(
        output or directory / "report.html",
        "pipeline.html.jinja",
        name=saved["name"],
        state=_state_of(stages),
        words=_in_words(stages),
        stages=stages,
        key_metrics={stage.name: list(_key_metrics(stage.run)) for stage in stages if stage.run is not None},
        evaluations=[table for stage in stages for table in _evaluation(stage)],
        runs=[stage.run for stage in stages if stage.run is not None],
        charts=_charts(stages),
    )


def _view(directory: Path, name: str, values: Any) -> StageView | None:
    record = StageRecord.read(values)
    if record is None:
        return None
    path = directory / name
    begun = record.state != "waiting"
    measured = read_json(path / "metrics.json") if begun and path.is_dir() else None
    links = {"report": f"{name}/report.html", "log": f"{name}.log"}
    return StageView(
        name=name,
        record=record,
        run=read_run(path) if begun and (path / "config.yaml").is_file() else None,
        measured=measured if isinstance(measured, dict) else {},
        links={label: target for label, target in links.items() if (directory / target).is_file()},
    )


def _state_of(stages: Sequence[StageView]) -> str:
    """Return the worst stage's state; a pipeline of which some stages wait was not finished."""
    states = {stage.record.state for stage in stages}
    if states <= {"finished"}:
        return "finished"
    return next((state for state in ("failed", "running", "stopped") if state in states), "waiting")


def _in_words(stages: Sequence[StageView]) -> str:
    done = sum(stage.record.state == "finished" for stage in stages)
    begun = min((stage.record.begun for stage in stages if stage.record.begun), default=None)
    seconds = sum(stage.record.seconds for stage in stages)
    words = f"{done} of {len(stages)} stages finished in {duration(seconds)}."
    return f"{words} Begun {day_and_time(begun)} UTC." if begun else words


def _key_metrics(run: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Yield (title, first, last) of what a stage is judged by: held-out metrics, the reward, the loss."""
    names = [name for name in run.names() if not name.startswith("time/")]
    held_out = [name for name in names if name.startswith("eval/")]
    losses = [name for name in names if name == "loss" or name.endswith("/loss")]
    chosen = [run.headline, *held_out, *(["reward/mean"] if "reward/mean" in names else []), *losses[:1]]
    for name in list(dict.fromkeys(name for name in chosen if name))[:MOST_KEY_METRICS]:
        if (ends := run.first_and_last(name)) is not None:
            yield title_of(name)[0], short(ends[0]), short(ends[1])


def _charts(stages: Sequence[StageView]) -> dict[str, tuple[list[Chart], dict[str, list[Chart]]]]:
    """Return stage -> (the charts of what was learned, the others by group)."""
    found = {}
    for number, stage in enumerate(stage for stage in stages if stage.run is not None):
        groups, _ = chart_groups([stage.run], first=number) if stage.run is not None else ({}, [])
        if groups:
            learned = groups.pop(LEARNING if LEARNING in groups else next(iter(groups)))
            found[stage.name] = (learned, groups)
    return found


def _evaluation(stage: StageView) -> Iterator[dict[str, Any]]:
    """Yield tables of an evaluation's metrics.json, one for the models, one for comparisons, with a row per metric."""
    groups = measured_groups(stage.measured)
    for family in dict.fromkeys(path[:-1] for path in groups):
        columns = {path[-1] if path else stage.name: groups[path] for path in groups if path[:-1] == family}
        names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
        rows = [[name.replace("_", " "), *(_cell(one.get(name)) for one in columns.values())] for name in names]
        yield {"title": " · ".join((stage.name, *family)), "columns": ["", *columns], "rows": rows}


def measured_groups(measured: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return path -> metrics, from a metrics.json however deep it nests them; a metric is a number or `{mean, low,
    high}`.

    Example: `{"models": {"sft": {"rouge": {"mean": 0.2}}}}` gives `{("models", "sft"): {"rouge": {"mean": 0.2}}}`.
    """
    own = {key: value for key, value in measured.items() if _is_measured(value)}
    groups = {path: own} if own else {}
    for key, value in measured.items():
        if isinstance(value, Mapping) and not _is_measured(value):
            groups |= measured_groups(value, (*path, key))
    return groups


def _is_measured(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, Mapping) and _is_number(value.get("mean")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None or _is_number(value):
        return short(value)
    ends = [value.get("low"), value.get("high")]
    interval = f" ({short(ends[0])} to {short(ends[1])})" if all(map(_is_number, ends)) else ""
    return f"{short(value['mean'])}{interval}"
