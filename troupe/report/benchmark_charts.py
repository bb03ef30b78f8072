"""The two charts of a benchmark as SVG: a metric over the training steps, and its first and last step beside other models.

Drawings for a page, whose style gives them their colours; `standalone` makes files of them. Numbers in, markup out.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from troupe.report.charts import Axis, short, tick_label, ticks
from troupe.statistics import Estimate
from troupe.style import LIGHT

WIDTH, HEIGHT = 640, 360
LEFT, TOP, BOTTOM = 52, 26, 34
LABELS = 190
"""Room on the right for the names of the lines."""
LINE_HEIGHT = 15
PERCENT_UP_TO = 1.01
"""A metric whose means lie within 0 and this is shown in percent."""
OURS = "var(--c1)"
OTHERS = ("var(--c0)", "var(--c2)", "var(--c3)", "var(--c6)", "var(--c7)", "var(--c4)", "var(--c5)", "var(--c8)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartData:
    """One metric of everybody, on the same validation samples."""

    metric: str
    trained: str
    """Name of the trained model; empty where there is none."""
    points: Sequence[tuple[int, Estimate]]
    """(step, mean with interval) of the trained model, in order."""
    others: Mapping[str, Estimate]
    split: str = "validation split"

    @property
    def percent(self) -> bool:
        """Whether the metric is a share."""
        means = [estimate.mean for estimate in (*(estimate for _, estimate in self.points), *self.others.values())]
        return bool(means) and min(means) >= 0 and max(means) <= PERCENT_UP_TO

    def as_dict(self) -> dict[str, Any]:
        """For charts.json."""
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


# -- over the steps ---------------------------------------------------------------------------------------------


def over_steps(data: ChartData) -> str:
    """The trained model as a line with markers in the band of its intervals, every other one as a dashed level.

    Levels of the same height are dotted, each with its gaps where the one before has its dots; a level's interval is
    the bar at its end. Empty without a trained model.
    """
    if not data.points:
        return ""
    steps = [step for step, _ in data.points]
    last = steps[-1] if len(steps) > 1 else steps[0] + 1
    x = Axis(low=steps[0], high=last, begin=LEFT + 8, end=WIDTH - LABELS)
    y = _value_axis([*(e for _, e in data.points), *data.others.values()], data.percent)
    end = WIDTH - LABELS
    parts = [_grid(y, data.percent, end), _steps(x, steps)]
    labels = [(y(data.points[-1][1].mean), data.trained, OURS, data.points[-1][1])]
    groups = [round(estimate.mean, 9) for estimate in data.others.values()]
    for index, (name, estimate) in enumerate(data.others.items()):
        color, at = OTHERS[index % len(OTHERS)], y(estimate.mean)
        tied, place = groups.count(groups[index]), groups[:index].count(groups[index])
        dashes = "7 5" if tied == 1 else f"2 {6 * tied - 2}"
        parts.append(
            f'<line class="level" x1="{LEFT}" x2="{end}" y1="{at}" y2="{at}" stroke-dasharray="{dashes}" '
            f'stroke-dashoffset="{-6 * place}" style="stroke:{color}">{_told(name, estimate, data.percent)}</line>'
            + _whisker(end - 4 - 6 * (index % 4), estimate, y, color)
        )
        labels.append((at, name, color, estimate))
    parts.append(_band(data.points, x, y))
    path = "L".join(f"{x(step)} {y(estimate.mean)}" for step, estimate in data.points)
    markers = "".join(
        f'<circle cx="{x(step)}" cy="{y(estimate.mean)}" r="3.5">'
        f"{_told(f'{data.trained}, step {step}', estimate, data.percent)}</circle>"
        for step, estimate in data.points
    )
    parts.append(f'<g class="trained" style="stroke:{OURS};fill:{OURS}"><path d="M{path}" fill="none"/>{markers}</g>')
    parts += _labels(labels, data.percent, end + 8)
    return _svg("".join(parts), f"{data.metric} over the training steps, {data.split}", "steps")


def _band(points: Sequence[tuple[int, Estimate]], x: Axis, y: Axis) -> str:
    if len(points) == 1:
        return _whisker(x(points[0][0]), points[0][1], y, OURS)
    upper = [f"{x(step)} {y(estimate.high)}" for step, estimate in points]
    lower = [f"{x(step)} {y(estimate.low)}" for step, estimate in reversed(points)]
    return (
        f'<path class="band" d="M{"L".join([*upper, *lower])}Z" style="fill:{OURS}" fill-opacity="0.16" stroke="none"/>'
    )


def _labels(labels: Sequence[tuple[float, str, str, Estimate]], percent: bool, left: float) -> Iterator[str]:
    """Names beside the ends of their lines, moved apart where they would lie on each other."""
    below = TOP - LINE_HEIGHT / 2
    ordered = sorted(labels, key=lambda label: label[0])
    room = HEIGHT - BOTTOM + LINE_HEIGHT / 2
    for index, (at, name, color, estimate) in enumerate(ordered):
        least = below + LINE_HEIGHT
        most = room - (len(ordered) - 1 - index) * LINE_HEIGHT
        below = max(least, min(at, most))
        shown = name if len(name) <= 22 else f"{name[:21]}…"
        yield (
            f'<circle cx="{left}" cy="{below:.1f}" r="3" style="fill:{color}"/>'
            f'<text x="{left + 8}" y="{below + 3.5:.1f}"><tspan class="name">{html.escape(shown)}</tspan> '
            f"{_value(estimate.mean, percent)}</text>"
        )


# -- first and last step beside the others ------------------------------------------------------------------------


def first_and_last(data: ChartData) -> str:
    """A bar per model; the trained one's goes from its first step, and what training added is hatched on top of it.

    "RL +N %" are percentage points where the scale is percent, else the metric's own unit. Empty without anybody.
    """
    if not data.points and not data.others:
        return ""
    bars: list[tuple[str, Estimate, Estimate | None]] = [(name, one, None) for name, one in data.others.items()]
    if data.points:
        (_, first), (_, last) = data.points[0], data.points[-1]
        bars.append((data.trained, last, first if len(data.points) > 1 else None))
    bars.sort(key=lambda bar: bar[1].mean)
    y = _value_axis(
        [one for _, last, first in bars for one in (last, first) if one is not None], data.percent, bars=True
    )
    slot = (WIDTH - LEFT - 16) / len(bars)
    width = min(slot * 0.62, 84)
    parts = [_HATCH, _grid(y, data.percent, WIDTH - 16)]
    for index, (name, last, first_of_ours) in enumerate(bars):
        center = LEFT + slot * (index + 0.5)
        ours = bool(data.points) and name == data.trained
        parts += _bar(center, width, last, first_of_ours, y, data.percent, name=name, ours=ours)
        parts.append(_name_below(center, name, slot))
    return _svg("".join(parts), f"{data.metric}, first and last step beside other models, {data.split}", "")


_HATCH = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" style="fill:var(--card)"/><rect width="3" height="6" style="fill:var(--c1)"/>'
    "</pattern></defs>"
)


def _bar(
    center: float,
    width: float,
    last: Estimate,
    first: Estimate | None,
    y: Axis,
    percent: bool,
    *,
    name: str,
    ours: bool,
) -> Iterator[str]:
    color = OURS if ours else "var(--c8)"
    zero = y(min(max(0.0, y.low), y.high))
    top = y(last.mean)

    def rect(kind: str, begin: float, end: float, style: str, told: str) -> str:
        upper, height = min(begin, end), max(abs(begin - end), 0.5)
        return (
            f'<rect class="{kind}" x="{center - width / 2:.1f}" y="{upper:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" style="{style}">{told}</rect>'
        )

    if first is None:
        yield rect("model", zero, top, f"fill:{color}", _told(name, last, percent))
    else:
        start = y(first.mean)
        lesser = max(start, top) if min(first.mean, last.mean) >= 0 else start
        yield rect("model", zero, lesser, f"fill:{color}", _told(f"{name}, first step", first, percent))
        hatched = f"fill:url(#hatch);stroke:{color}"
        yield rect("gain", start, top, hatched, _told(f"{name}, last step", last, percent))
    yield _whisker(center, last, y, "var(--ink)")
    yield (
        f'<text class="name" x="{center:.1f}" y="{min(y(last.high), top) - 6:.1f}" text-anchor="middle">'
        f"{_value(last.mean, percent)}</text>"
    )
    if first is not None:
        yield _gain(center, first, last, y, percent)


def _gain(center: float, first: Estimate, last: Estimate, y: Axis, percent: bool) -> str:
    """What training added, in the hatched part, or above everything where that is too low for a text."""
    gain, start, top = last.mean - first.mean, y(first.mean), y(last.mean)
    size = f"{abs(gain) * 100:.0f} %" if percent else short(abs(gain))
    at = (start + top) / 2 + 4 if abs(start - top) >= 22 else min(y(last.high), top) - 20
    return (
        f'<text class="name outlined" x="{center:.1f}" y="{at:.1f}" text-anchor="middle">'
        f"RL {'−' if gain < 0 else '+'}{size}</text>"
    )


def _name_below(center: float, name: str, slot: float) -> str:
    fits = max(int(slot / 6.3), 4)
    shown = name if len(name) <= fits else f"{name[: fits - 1]}…"
    return (
        f'<text x="{center:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{html.escape(shown)}'
        f"<title>{html.escape(name)}</title></text>"
    )


# -- parts --------------------------------------------------------------------------------------------------------


def _value_axis(estimates: Sequence[Estimate], percent: bool, *, bars: bool = False) -> Axis:
    """From zero for shares and bars, else close around the intervals."""
    low, high = min(one.low for one in estimates), max(one.high for one in estimates)
    if low == high:
        low, high = (low - abs(low) * 0.1, high + abs(high) * 0.1) if low else (0.0, 1.0)
    room = (high - low) * 0.08
    if percent or bars:
        low, high = min(low - room if low < 0 else 0.0, 0.0), max(high + room, 0.0)
    else:
        low, high = (0.0 if 0 <= low <= 0.5 * high else low - room), high + room
    if percent and high > 0.8:
        high = max(high, 1.0)
    return Axis(low=low, high=high, begin=HEIGHT - BOTTOM, end=TOP)


def _grid(y: Axis, percent: bool, end: float) -> str:
    marks = ticks(y.low, y.high, 6)
    lines = "".join(
        f'<line x1="{LEFT}" x2="{end}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text x="{LEFT - 8}" y="{y(mark) + 3.5}" text-anchor="end">{f"{mark:.0%}" if percent else tick_label(mark, marks)}</text>'
        for mark in marks
    )
    return f'<g class="grid">{lines}</g>'


def _steps(x: Axis, steps: Sequence[int]) -> str:
    """The steps that were measured, as long as they do not lie on each other."""
    marks = steps if len(steps) <= 8 else [int(mark) for mark in ticks(x.low, x.high, 8) if float(mark).is_integer()]
    return "".join(
        f'<text x="{x(mark)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{mark:,}</text>' for mark in marks
    )


def _whisker(at: float, estimate: Estimate, y: Axis, color: str) -> str:
    low, high = y(max(estimate.low, y.low)), y(min(estimate.high, y.high))
    return (
        f'<path class="whisker" d="M{at:.1f} {low}V{high}M{at - 3:.1f} {low}h6M{at - 3:.1f} {high}h6" '
        f'style="stroke:{color}" fill="none"/>'
    )


def _told(name: str, estimate: Estimate, percent: bool) -> str:
    numbers = [_value(value, percent) for value in (estimate.mean, estimate.low, estimate.high)]
    return f"<title>{html.escape(name)}: {numbers[0]} ({numbers[1]} to {numbers[2]})</title>"


def _value(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"
    return f"−{short(-value)}" if value < 0 else short(value)


def _svg(drawing: str, title: str, below: str) -> str:
    axis = (
        f'<text x="{(LEFT + WIDTH - LABELS) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{below}</text>' if below else ""
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="benchmark" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}"><text class="name" x="{LEFT}" y="14">{html.escape(title)}</text>'
        f"{drawing}{axis}</svg>"
    )


CSS = """
svg.benchmark text { font-size: 11.5px; fill: var(--soft); stroke: none; } svg.benchmark .name { fill: var(--ink); font-weight: 600; }
svg.benchmark .outlined { paint-order: stroke; stroke: var(--card); stroke-width: 5px; }
svg.benchmark .level { stroke-width: 1.6; } svg.benchmark .whisker { stroke-width: 1.2; }
svg.benchmark .trained path { stroke-width: 2.2; stroke-linejoin: round; } svg.benchmark .grid line { stroke: var(--grid); }
"""
"""What the drawings need of a page's style."""


def standalone(svg: str) -> str:
    """A file of its own, in the colours by day, which every viewer of SVG understands; empty of an empty drawing."""
    if not svg:
        return ""
    font = "svg.benchmark { font-family: system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; }"
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill:var(--card)"/>'
    head, body = svg.split(">", 1)
    whole = f"{head}><style>{font}{CSS}</style>{ground}{body}\n"
    colors = dict(re.findall(r"--(\w+): (#\w+)", LIGHT))
    return re.sub(r"var\(--(\w+)\)", lambda found: colors[found.group(1)], whole)
