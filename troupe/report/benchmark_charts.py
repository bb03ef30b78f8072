"""The two charts of a benchmark as SVG: a metric over the training steps, and its first and last step beside others.

They are files for other pages (docs/evaluation.md), so they are drawn here, by matplotlib, and not in the browser.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from troupe.report.charts import short
from troupe.statistics import Estimate

PERCENT_UP_TO = 1.01
"""A metric whose means are within 0 and this is shown in percent."""
OURS, OTHER = "#c05f10", "#8b8780"
LEVELS = ("#2f5fc4", "#1f8563", "#a24fb0", "#2583a0", "#8f6b0e", "#c8453c", "#5a7a16", OTHER)
SIZE_IN = (8.2, 4.4)
RC_PARAMS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a user's name may have a $ in it
    "svg.hashsalt": "troupe",
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e7e4de",
    "hatch.linewidth": 3.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartData:
    """One metric of all models, on the same validation samples."""

    metric: str
    trained: str
    """Name of the trained model; empty where there is none."""
    points: Sequence[tuple[int, Estimate]]
    """(step, mean with interval) of the trained model, in order."""
    others: Mapping[str, Estimate]
    split: str = "validation split"

    @property
    def percent(self) -> bool:
        """Return whether the metric is a share."""
        means = [estimate.mean for estimate in (*(estimate for _, estimate in self.points), *self.others.values())]
        return bool(means) and min(means) >= 0 and max(means) <= PERCENT_UP_TO

    def as_dict(self) -> dict[str, Any]:
        """Return the content of charts.json."""
        return {
            "metric": self.metric,
            "split": self.split,
            "percent": self.percent,
            "trained": {
                "name": self.trained,
                "points": [{"step": step, **_numbers(estimate)} for step, estimate in self.points],
            },
            "others": {name: _numbers(estimate) for name, estimate in self.others.items()},
        }


def _numbers(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def over_steps(data: ChartData) -> str:
    """Draw the trained model as a line in the band of its intervals and every other one as a dashed level.

    Levels of the same height are dotted, each in the gaps of the one before. Empty without a trained model.
    """
    return _svg(data, "over the training steps", _add_steps) if data.points else ""


def first_and_last(data: ChartData) -> str:
    """Draw a bar per model; what training added to the trained one's first step is hatched on top of it.

    "RL +N %" are percentage points where the scale is percent, else the metric's own unit. Empty without any model.
    """
    return _svg(data, "first and last step beside other models", _add_bars) if data.points or data.others else ""


def _svg(data: ChartData, what: str, add: Callable[[Any, ChartData], None]) -> str:
    # Imported here, since it takes a third of a second that no other command should wait for.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    file = io.StringIO()
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(f"{data.metric} {what}, {data.split}", loc="left", fontsize=11)
        add(axes, data)
        if data.percent:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        # No date and no version: the same numbers make the same file.
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _add_steps(axes: Any, data: ChartData) -> None:
    _add_levels(axes, data)
    steps, estimates = zip(*data.points, strict=True)
    low, high = [one.low for one in estimates], [one.high for one in estimates]
    axes.fill_between(steps, low, high, color=OURS, alpha=0.16, linewidth=0, gid="band")
    label = f"{data.trained} {_value(estimates[-1].mean, data.percent)}"
    axes.plot(steps, [one.mean for one in estimates], color=OURS, marker="o", linewidth=2.2, label=label, gid="trained")
    if len(steps) == 1:
        _add_interval(axes, steps[0], estimates[0], OURS)
    axes.set_xlabel("steps")
    axes.xaxis.get_major_locator().set_params(integer=True)
    means = [*(one.mean for one in data.others.values()), estimates[-1].mean]
    named = zip(means, *axes.get_legend_handles_labels(), strict=True)
    handles = [handle for _, handle, _ in sorted(named, key=lambda one: -one[0])]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def _add_levels(axes: Any, data: ChartData) -> None:
    steps = [step for step, _ in data.points]
    means = [round(one.mean, 9) for one in data.others.values()]
    for index, (name, level) in enumerate(data.others.items()):
        ties, place = means.count(means[index]), means[:index].count(means[index])
        dashes = (0, (5, 3)) if ties == 1 else (4 * place, (1, 4 * ties - 1))
        label, color = f"{name} {_value(level.mean, data.percent)}", LEVELS[index % len(LEVELS)]
        axes.axhline(level.mean, color=color, linestyle=dashes, linewidth=1.5, label=label, gid=f"level-{index}")
        # Beside one another behind the last step, where intervals would cover each other.
        _add_interval(axes, steps[-1] + max(steps[-1] - steps[0], 1) * 0.02 * (1 + index % 4), level, color)


def _add_bars(axes: Any, data: ChartData) -> None:
    bars = [*data.others.items(), *([(data.trained, data.points[-1][1])] if data.points else [])]
    bars.sort(key=lambda bar: bar[1].mean)
    for place, (name, estimate) in enumerate(bars):
        text = _value(estimate.mean, data.percent)
        if data.points and name == data.trained:
            text += _add_trained_bar(axes, place, data)
        else:
            axes.bar(place, estimate.mean, color=OTHER, width=0.6)
        _add_interval(axes, place, estimate, "#1f1e1c")
        top = max(estimate.high, estimate.mean, 0.0)
        axes.annotate(text, (place, top), (0, 4), textcoords="offset points", ha="center", weight="bold")
    axes.axhline(0, color="#1f1e1c", linewidth=0.8)
    axes.set_xticks(range(len(bars)), [name for name, _ in bars], rotation=0 if len(bars) < 7 else 30)
    axes.use_sticky_edges = False  # room for the numbers also above bars that hang down from 0
    axes.margins(y=0.16)


def _add_trained_bar(axes: Any, place: int, data: ChartData) -> str:
    """Draw the trained model's bar; return the line above its value, empty where it was measured once."""
    first, last = data.points[0][1].mean, data.points[-1][1].mean
    if len(data.points) == 1:
        axes.bar(place, last, color=OURS, width=0.6)
        return ""
    lesser = min(first, last) if min(first, last) >= 0 else first
    axes.bar(place, lesser, color=OURS, width=0.6)
    hatched = {"facecolor": "white", "edgecolor": OURS, "hatch": "//", "linewidth": 1}
    axes.bar(place, last - first, bottom=first, width=0.6, gid="gain", **hatched)
    size = f"{abs(last - first) * 100:.0f} %" if data.percent else short(abs(last - first))
    return f"\nRL {'−' if last < first else '+'}{size}"


def _add_interval(axes: Any, at: float, estimate: Estimate, color: str) -> None:
    reach = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
    axes.errorbar([at], [estimate.mean], yerr=reach, color=color, capsize=3, linewidth=1.2, fmt="none")


def _value(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"
    return f"−{short(-value)}" if value < 0 else short(value)
