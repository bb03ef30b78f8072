"""The report of a benchmark: charts, tables and some answers side by side; one file, from the directory alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from troupe.errors import DataError
from troupe.files import read_json, read_lines
from troupe.report.benchmark_charts import ChartData, first_and_last, over_steps
from troupe.report.page import write_page
from troupe.statistics import Estimate

SHOWN_SAMPLES = 8
BENCHMARK = "benchmark.json"


def build_benchmark_report(directory: Path, output: Path | None = None) -> Path:
    """Write report.html; return where it is. DataError where there is no benchmark."""
    found = read_json(directory / BENCHMARK)
    if found is None:
        raise DataError(f"{directory} holds no whole {BENCHMARK}; run jobs/benchmark.py with output={directory}")
    charts = [chart_of(one) for one in found["charts"]]
    config = directory / "config.yaml"
    return write_page(
        output or directory / "report.html",
        "benchmark.html.jinja",
        name=directory.resolve().name,
        found=found,
        state=str((read_json(directory / "status.json") or {}).get("state", "finished")),
        drawings={
            "Over the training steps": [_inline(svg) for chart in charts if (svg := over_steps(chart))],
            "First and last step": [_inline(svg) for chart in charts if (svg := first_and_last(chart))],
        },
        samples=_samples(directory, [one["name"] for one in found["contestants"]]),
        config_text=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def chart_of(numbers: Mapping[str, Any]) -> ChartData:
    """Return the chart whose numbers benchmark.json and charts.json hold."""
    trained = numbers["trained"]
    return ChartData(
        metric=numbers["metric"],
        trained=trained["name"],
        points=[(point["step"], _estimate(point)) for point in trained["points"]],
        others={name: _estimate(one) for name, one in numbers["others"].items()},
    )


def _estimate(numbers: Mapping[str, float]) -> Estimate:
    return Estimate(mean=numbers["mean"], low=numbers["low"], high=numbers["high"])


def _inline(svg: str) -> Markup:
    """Return the file without its declaration; matplotlib has escaped its texts."""
    return Markup(svg[svg.index("<svg") :])


def _samples(directory: Path, names: Sequence[str]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return sample -> (its first row, the first answer of each model), of the first samples."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name in names:
        for row in read_lines(directory / "answers" / f"{name}.jsonl"):
            if not row["repeat"]:
                whole = {key: value for key, value in row["metrics"].items() if "/" not in key}
                found.setdefault(row["sample_id"], (row, {}))[1][name] = {**row, "metrics": whole}
    return dict(list(found.items())[:SHOWN_SAMPLES])
