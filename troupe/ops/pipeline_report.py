"""The report of a pipeline: its stages in a row, what each reached, its curves, and the tables of its evaluations.

Built from the directory alone, like a run's (`troupe.report.report`), whose pages it links to; one file without a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from troupe.errors import DataError
from troupe.files import read_json, write_atomically
from troupe.ops.pipeline import STATE_FILE, StageRecord
from troupe.processes.progress import duration
from troupe.report.charts import short
from troupe.report.report_curves import curve_groups, title_of
from troupe.report.report_data import RunRecord, day_and_time, read_run
from troupe.report.report_page import escape, navigation, page, section, table

MOST_KEY_METRICS = 4
ROW_STYLE = "grid-template-columns:repeat(auto-fit,minmax(150px,1fr))"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """A stage as the report sees it."""

    name: str
    record: StageRecord
    run: RunRecord | None
    """Its run directory, where it has one."""
    measured: Mapping[str, Any]
    """Its metrics.json, where it has one."""


def build_pipeline_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of the pipeline in `directory`; returns where it is."""
    directory = Path(directory)
    saved = read_json(directory / STATE_FILE)
    if not isinstance(saved, dict):
        raise DataError(f"{directory} is not a pipeline's directory: it has no {STATE_FILE}")
    stages = [view for name, values in saved["stages"].items() if (view := _view(directory, name, values)) is not None]
    parts = {
        "Stages": _overview(stages, directory),
        "Evaluations": "".join(_evaluation(stage) for stage in stages if stage.measured),
        **{stage.name: _curves(stage) for stage in stages},
    }
    present = {title: body for title, body in parts.items() if body}
    body = (
        _masthead(saved, stages, list(present))
        + _row(stages)
        + "".join(section(title, body) for title, body in present.items())
        + "<footer>Move over a chart to read all of them at that step. Times are UTC.</footer>"
    )
    output = output or directory / "report.html"
    write_atomically(output, page(f"{saved['name']} · Troupe", body))
    return output


def _view(directory: Path, name: str, values: Any) -> StageView | None:
    record = StageRecord.read(values)
    if record is None:
        return None
    path = directory / name
    begun = record.state != "waiting"
    measured = read_json(path / "metrics.json") if begun and path.is_dir() else None
    return StageView(
        name=name,
        record=record,
        run=read_run(path) if begun and (path / "config.yaml").is_file() else None,
        measured=measured if isinstance(measured, dict) else {},
    )


# -- the whole ---------------------------------------------------------------------------------------------------


def _masthead(saved: Mapping[str, Any], stages: Sequence[StageView], titles: Sequence[str]) -> str:
    state = _state_of(stages)
    done = sum(stage.record.state == "finished" for stage in stages)
    begun = min((stage.record.begun for stage in stages if stage.record.begun), default=None)
    seconds = sum(stage.record.seconds for stage in stages)
    words = f"{done} of {len(stages)} stages finished in {duration(seconds)}."
    words += f" Begun {day_and_time(begun)} UTC." if begun else ""
    banners = "".join(_failure(stage) for stage in stages if stage.record.state == "failed")
    return (
        f'<p class="over">Troupe · pipeline</p><div class="title"><h1>{escape(saved["name"])}</h1>'
        f'<span class="state {state}">{state}</span></div><p class="lead">{escape(words)}</p>{banners}{navigation(titles)}'
    )


def _state_of(stages: Sequence[StageView]) -> str:
    """What the worst stage says; a pipeline of which some stages wait was not finished."""
    states = {stage.record.state for stage in stages}
    if states <= {"finished"}:
        return "finished"
    return next((state for state in ("failed", "running", "stopped") if state in states), "waiting")


def _failure(stage: StageView) -> str:
    lines = escape("\n".join(stage.record.tail))
    return f'<div class="banner"><b class="failed">{escape(stage.record.error or "a stage failed")}</b><pre>{lines}</pre></div>'


def _row(stages: Sequence[StageView]) -> str:
    tiles = "".join(
        f'<div class="tile"><p>{number}. {escape(stage.record.job)}</p><strong>{escape(stage.name)}</strong>'
        f'<p><span class="{stage.record.state}">{stage.record.state}</span>{_time_of(stage)}</p></div>'
        for number, stage in enumerate(stages, start=1)
    )
    return f'<div class="tiles" style="{ROW_STYLE}">{tiles}</div>'


def _time_of(stage: StageView) -> str:
    return f" · {duration(stage.record.seconds)}" if stage.record.seconds else ""


def _overview(stages: Sequence[StageView], directory: Path) -> str:
    rows = [
        (
            escape(stage.name),
            f'<span class="{stage.record.state}">{stage.record.state}</span>',
            duration(stage.record.seconds) if stage.record.seconds else "–",
            _steps_of(stage),
            "<br>".join(_key_metrics(stage)) or "–",
            escape(", ".join(_inputs_of(stage))) or "–",
            _links(stage, directory),
        )
        for stage in stages
    ]
    columns = ["Stage", "State", "Time", "Steps", "First → last", "Takes", "More"]
    return table(columns, rows, numbers=(2, 3))


def _steps_of(stage: StageView) -> str:
    if stage.run is None:
        return "–"
    return f"{stage.run.last_step} <span class=soft>of {escape(stage.run.status.get('steps', '?'))}</span>"


def _key_metrics(stage: StageView) -> Iterator[str]:
    """The metrics that a stage is judged by: held-out ones, the reward, the loss."""
    run = stage.run
    if run is None:
        return
    names = [name for name in run.names() if not name.startswith("time/")]
    held_out = [name for name in names if name.startswith("eval/")]
    losses = [name for name in names if name == "loss" or name.endswith("/loss")]
    chosen = [run.headline, *held_out, *(["reward/mean"] if "reward/mean" in names else []), *losses[:1]]
    for name in list(dict.fromkeys(name for name in chosen if name))[:MOST_KEY_METRICS]:
        ends = run.first_and_last(name)
        if ends is not None:
            yield (f"<span class=soft>{escape(title_of(name)[0])}</span> {short(ends[0])} → <b>{short(ends[1])}</b>")


def _inputs_of(stage: StageView) -> list[str]:
    return list(dict.fromkeys(item["stage"] for given in stage.record.inputs.values() for item in given))


def _links(stage: StageView, directory: Path) -> str:
    """To what lies beside this page; relative, so that the directory can be moved."""
    there = {"report": f"{stage.name}/report.html", "log": f"{stage.name}.log"}
    return " · ".join(
        f'<a href="{escape(target)}">{label}</a>' for label, target in there.items() if (directory / target).is_file()
    )


# -- a stage -----------------------------------------------------------------------------------------------------


def _curves(stage: StageView) -> str:
    """What was learned in sight, everything else folded."""
    if stage.run is None or not stage.run.metrics:
        return ""
    groups = curve_groups([stage.run])
    learning = groups.pop("Learning", "") or (groups.pop(next(iter(groups))) if groups else "")
    folded = "".join(f"<h3 style='margin:18px 0 10px'>{escape(title)}</h3>{charts}" for title, charts in groups.items())
    others = f'<details style="margin-top:14px"><summary class="soft">all curves</summary>{folded}</details>'
    return learning + (others if folded else "")


def _evaluation(stage: StageView) -> str:
    """Tables of an evaluation's metrics.json: one for the models, one for comparisons, with a row per metric."""
    groups = measured_groups(stage.measured)
    families = list(dict.fromkeys(path[:-1] for path in groups))
    return "".join(
        _measured_table(
            " · ".join((stage.name, *family)),
            {path[-1] if path else stage.name: groups[path] for path in groups if path[:-1] == family},
        )
        for family in families
    )


def _measured_table(heading: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    rows = [
        [escape(name.replace("_", " ")), *(_cell(metrics.get(name)) for metrics in columns.values())] for name in names
    ]
    body = table(["", *columns], rows, numbers=range(1, len(columns) + 1))
    return f'<h3 style="margin:18px 0 10px">{escape(heading)}</h3>{body}'


def measured_groups(measured: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict[str, Any]]:
    """Path -> metrics, from a metrics.json however deep it nests them; a metric is a number or `{mean, low, high}`.

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
    if value is None:
        return "–"
    if _is_number(value):
        return short(value)
    ends = [value.get("low"), value.get("high")]
    interval = f" <span class=soft>{short(ends[0])} .. {short(ends[1])}</span>" if all(map(_is_number, ends)) else ""
    return f"{short(value['mean'])}{interval}"
