"""The report of a benchmark: the charts, the tables and some answers side by side; one file, from the directory alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from troupe.errors import DataError
from troupe.files import read_json, read_lines, write_atomically
from troupe.report.benchmark_charts import CSS, ChartData, first_and_last, over_steps
from troupe.report.report_page import escape, navigation, page, section, table
from troupe.statistics import Estimate

SHOWN_SAMPLES = 8
BENCHMARK = "benchmark.json"
WIDE = "svg.benchmark { display: block; width: 100%; max-width: 860px; height: auto; }"


def build_benchmark_report(directory: Path, output: Path | None = None) -> Path:
    """Write report.html; returns where it is. DataError where there is no benchmark."""
    found = read_json(directory / BENCHMARK)
    if found is None:
        raise DataError(f"{directory} holds no whole {BENCHMARK}; run jobs/benchmark.py with output={directory}")
    charts = [chart_of(one) for one in found["charts"]]
    parts = {
        "Over the training steps": "".join(_card(over_steps(chart)) for chart in charts),
        "First and last step": "".join(_card(first_and_last(chart)) for chart in charts),
        **{one["title"]: _table(one) for one in found["tables"]},
        "Answers": _answers(directory, [one["name"] for one in found["contestants"]]),
        "Recipe": _recipe(directory),
    }
    present = {title: body for title, body in parts.items() if body}
    name = directory.resolve().name
    state = str((read_json(directory / "status.json") or {}).get("state", "finished"))
    body = (
        f'<p class="over">Troupe · benchmark</p><div class="title"><h1>{escape(name)}</h1></div>'
        f'<p class="lead">{escape(found["lead"])}{"" if state == "finished" else f" State: {escape(state)}."}</p>'
        f"{_remarks(found['contestants'])}{navigation(present)}<style>{CSS}{WIDE}</style>"
        + "".join(section(title, body) for title, body in present.items())
    )
    output = output or directory / "report.html"
    write_atomically(output, page(f"{name} · Troupe", body))
    return output


def chart_of(numbers: Mapping[str, Any]) -> ChartData:
    """The chart whose numbers benchmark.json and charts.json hold."""
    trained = numbers["trained"]
    return ChartData(
        metric=numbers["metric"],
        trained=trained["name"],
        points=[(point["step"], _estimate(point)) for point in trained["points"]],
        others={name: _estimate(one) for name, one in numbers["others"].items()},
    )


def _estimate(numbers: Mapping[str, float]) -> Estimate:
    return Estimate(mean=numbers["mean"], low=numbers["low"], high=numbers["high"])


def _card(svg: str) -> str:
    return f'<div class="card">{svg}</div>' if svg else ""


def _table(one: Mapping[str, Any]) -> str:
    rows = [[escape(name), *map(escape, cells)] for name, cells in one["rows"].items()]
    return table(["Model", *one["columns"]], rows, numbers=range(1, len(one["columns"]) + 1))


def _remarks(contestants: Sequence[Mapping[str, Any]]) -> str:
    told = [
        f'<p class="banner"><b class="failed">{escape(one["name"])} is not measured.</b> {escape(one["remark"])}</p>'
        for one in contestants
        if one["remark"] is not None
    ]
    return "".join(told)


def _answers(directory: Path, names: Sequence[str]) -> str:
    """The first samples with everybody's first answer."""
    answers = {
        name: {
            row["sample_id"]: row for row in read_lines(directory / "answers" / f"{name}.jsonl") if not row["repeat"]
        }
        for name in names
    }
    shown: dict[str, Mapping[str, Any]] = {}
    for rows in answers.values():
        for sample_id, row in rows.items():
            shown.setdefault(sample_id, row)
    cards = []
    for sample_id, first in list(shown.items())[:SHOWN_SAMPLES]:
        gold = _answer("gold", first["reference"]) if first["reference"] else ""
        given = "".join(
            _answer(name, rows[sample_id]["prediction"], rows[sample_id]["metrics"])
            for name, rows in answers.items()
            if sample_id in rows
        )
        cards.append(
            f'<details class="card"><summary>{escape(sample_id)}</summary><div class="text prompt">{escape(first["prompt"])}</div>'
            f'<div class="branches">{gold}{given}</div></details>'
        )
    return "".join(cards)


def _answer(name: str, text: str, metrics: Mapping[str, float] | None = None) -> str:
    told = "".join(
        f"<span>{escape(key)} {value:.3g}</span>" for key, value in (metrics or {}).items() if "/" not in key
    )
    return (
        f'<div class="answer"><header><b>{escape(name)}</b>{told}</header><div class="text">{escape(text)}</div></div>'
    )


def _recipe(directory: Path) -> str:
    file = directory / "config.yaml"
    if not file.is_file():
        return ""
    return f'<details class="card"><summary>config.yaml</summary><pre>{escape(file.read_text(encoding="utf-8"))}</pre></details>'
