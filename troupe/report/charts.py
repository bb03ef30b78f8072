"""The charts of a report as data: which metrics share a chart, in which order, and their numbers.

The browser draws them (`app.js`, with uPlot). What metrics are called is in `troupe.report.report_titles`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from troupe.report.report_data import NOT_METRICS, RunRecord
from troupe.report.report_titles import GROUPS, OTHER, SPEED, TITLES, Plot, group_of, plots, title_of, training_of

GAP = "consistency/logprob_gap"
EQUAL = 1e-5
"""Values that differ by less, relatively, are constant: a ratio of 1.0000001 has no axis that a person could read."""
MOST_VALUES = 300_000
"""Numbers of metrics.jsonl in a page, a few megabytes; of a longer run, lines are left out at equal distances."""
TOKENS = ("data/tokens", "rollout/tokens", "update/tokens")
"""The tokens of a step, the first that is logged."""
PHASE_COLORS = {
    "rollout": 0,
    "update": 1,
    "reference": 3,
    "publish": 2,
    "evaluate": 6,
    "evaluation": 6,
    "reward": 4,
    "checkpoint": 7,
    "advantage": 5,
    "other": 8,
}
"""The number of a phase's colour in style.css, the same in every report."""

Chart = dict[str, Any]


def short(value: float | None) -> str:
    """Return a number as a person reads it: 4 significant digits at most, thousands as k and M."""
    if value is None:
        return "–"
    size = abs(value)
    if size == 0 or (size < 1e15 and value == int(value) and size < 10_000):
        return f"{int(value)}"
    if size >= 1e6:
        return f"{value / 1e6:.1f}M"
    if size >= 1e4:
        return f"{value / 1e3:.1f}k"
    if size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.{3 if size < 1 else 2 if size < 100 else 0}f}"


def run_numbers(run: RunRecord) -> dict[str, Any]:
    """Return the run's metrics as columns: its x axes, and for every metric its values and the lines that have it."""
    stride = math.ceil(max(sum(map(len, run.metrics)), 1) / MOST_VALUES)
    kept = run.metrics[::-stride][::-1]  # from the end: the last line is always kept
    columns: dict[str, dict[str, list[Any]]] = {}
    for index, line in enumerate(kept):
        for name, value in line.items():
            if name not in NOT_METRICS:
                column = columns.setdefault(name, {"lines": [], "values": []})
                column["lines"].append(index)
                column["values"].append(value if isinstance(value, int | float) and math.isfinite(value) else None)
    return {
        "name": run.name,
        "x": {
            "step": [line["step"] for line in kept],
            "tokens": _tokens_so_far(run, [line["step"] for line in kept]),
            "time": [line.get("wall_s") or 0.0 for line in kept],
        },
        "metrics": columns,
    }


def _tokens_so_far(run: RunRecord, steps: Sequence[int]) -> list[float]:
    """Return the tokens up to each of `steps`; empty where no metric counts them."""
    name = next((name for name in TOKENS if run.values(name)), None)
    if name is None:
        return []
    total, at_step = 0.0, {}
    for line in run.metrics:
        total += line.get(name) or 0.0
        at_step[line["step"]] = total
    return [at_step[step] for step in steps]


def chart_groups(runs: Sequence[RunRecord], *, first: int = 0) -> tuple[dict[str, list[Chart]], list[dict[str, str]]]:
    """Return (charts by group in reading order, metrics without a chart of their own).

    Without a chart are constant metrics, and those with the values of another. In the report of one run, metrics that
    are read together share a chart; of several runs each metric has its own. `first` is the number of the first of
    `runs` among the page's.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.names() if group_of(name)))
    folded = _folded(runs, names)
    drawn = [name for name in names if name not in folded]
    groups: dict[str, list[Chart]] = {}
    headline = runs[0].headline
    for group in [*GROUPS, OTHER]:
        members = sorted((name for name in drawn if group_of(name) == group), key=lambda name: _rank(name, headline))
        one_each = [Plot(*title_of(name), {name: ""}) for name in members]
        charts = [_chart(runs, plot, first) for plot in (plots(members) if len(runs) == 1 else one_each)]
        if charts:
            compared = any(name.startswith("consistency/") for name in members)
            # Jobs without generators have no consistency to report.
            groups["Data and speed" if group == SPEED and not compared else group] = charts
    return groups, [{"metric": name, "title": title_of(name)[0], "value": value} for name, value in folded.items()]


def _folded(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, str]:
    """Return metric -> the words that stand for its chart."""
    said: dict[str, str] = {}
    seen: dict[tuple[tuple[float, float | None], ...], str] = {}
    for name in sorted(names, key=lambda name: list(TITLES).index(name) if name in TITLES else len(TITLES)):
        curves = [run.points(name) for run in runs]
        values = {value for points in curves for _, value in points}
        points = tuple(point for curve in curves for point in curve)
        low, high = (
            min((v for v in values if v is not None), default=0),
            max((v for v in values if v is not None), default=0),
        )
        same = seen.setdefault(points, name)
        if None not in values and len(points) > len(runs) and high - low <= EQUAL * max(abs(low), abs(high)):
            said[name] = short(high)
        elif same != name and len(points) > 1:
            said[name] = f"equals {same}"
    always_drawn = {GAP, *(run.headline for run in runs)}
    return {name: said[name] for name in names if name in said and name not in always_drawn}


def _chart(runs: Sequence[RunRecord], plot: Plot, first: int) -> Chart:
    curves: list[dict[str, Any]] = []
    trained = [name for name in plot.curves if not name.startswith("eval/")]
    for number, run in enumerate(runs, start=first):
        for place, (name, label) in enumerate(plot.curves.items()):
            if run.points(name):
                several = len(runs) > 1
                # Beside other quantities, the held-out side has the colour of its own and is dashed.
                of_run = trained.index(training_of(name, trained)) if len(trained) > 1 else place
                look = {"color": number if several else of_run, "dashed": bool(label) and name.startswith("eval/")}
                curves.append({"run": number, "metric": name, "label": run.name if several else label, **look})
    chart: Chart = {"title": plot.title, "hint": plot.hint, "metrics": list(plot.curves), "curves": curves}
    if GAP in plot.curves:
        bound = min((run.consistency_bound for run in runs if run.consistency_bound is not None), default=None)
        noises = [
            {"run": number, "metric": "consistency/noise", "label": "rounding alone", "color": number, "dashed": True}
            for number, run in enumerate(runs, start=first)
            if run.points("consistency/noise")
        ]
        chart |= {"bound": bound, "curves": [*curves, *noises]}
    return chart


def phase_chart(run: RunRecord, number: int = 0) -> Chart:
    """Return the seconds of the phases, stacked over the steps."""
    curves = [
        {"run": number, "metric": f"time/{phase}_s", "label": phase, "color": phase_color(run, phase), "bars": True}
        for phase in run.phases
    ]
    return {
        "title": "Seconds of a step",
        "hint": "by phase",
        "metrics": ["time/step_s"],
        "curves": curves,
        "stacked": True,
    }


def phase_color(run: RunRecord, phase: str) -> int:
    """Return the number of a phase's colour; phases of other jobs take what is left."""
    if phase in PHASE_COLORS:
        return PHASE_COLORS[phase]
    taken = {PHASE_COLORS.get(known) for known in run.phases}
    free = [color for color in range(8) if color not in taken] or [0]
    return free[[known for known in run.phases if known not in PHASE_COLORS].index(phase) % len(free)]


def reliability_chart(bins: Sequence[dict[str, Any]]) -> Chart:
    """Return accuracy over confidence beside the diagonal of a model that is as often right as it is sure."""
    confidence = [one["confidence"] for one in bins]
    x = sorted({0.5, *confidence, 1.0})
    accuracy = dict(zip(confidence, (one["accuracy"] for one in bins), strict=True))
    return {
        "title": "Reliability",
        "hint": "share of pairs that it ranks rightly, by its confidence",
        "metrics": ["calibration.json"],
        "x": "confidence",
        "table": [x, [accuracy.get(one) for one in x], x],
        "curves": [{"label": "accuracy", "color": 0}, {"label": "as sure as right", "color": 8, "dashed": True}],
    }


def _rank(name: str, headline: str | None) -> tuple[int, int, str]:
    """Order by: the headline metric, held-out ones, those with a title, the rest by name."""
    titled = list(TITLES).index(name) if name in TITLES else len(TITLES)
    return (0 if name == headline else 1 if name.startswith("eval/") else 2, titled, name)
