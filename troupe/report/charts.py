"""Charts as inline SVG: line charts with axes, and stacked bars. Numbers in, markup out; no library, no network.

A chart carries its points as JSON in `data-chart`; the page's few lines of script (`troupe.report.report_page`) move a cursor
over all charts of the page at once. Colours are CSS variables, so that light and dark are the page's business.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MOST_POINTS = 240
RESOLUTION = 1e-5
"""Values that differ by less, relatively, are drawn as equal: a ratio of 1.0000001 has no axis that a person could read."""
SMOOTH_FROM = 50
"""Points from which on a running mean is drawn over the raw curve."""

Point = tuple[float, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve: (step, value) in order; a value of None (a NaN in the run) leaves a gap."""

    label: str
    points: Sequence[Point]
    color: str = "var(--c0)"
    dashed: bool = False
    smooth: bool = True
    """Whether a long curve may be drawn as a running mean; not where its points are few and each is a mean already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear or logarithmic map from values to pixels."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log10(max(value, self.low)), math.log10(low), math.log10(high)
        return round(self.begin + (value - low) / (high - low) * (self.end - self.begin), 1)


def short(value: float | None) -> str:
    """A number as a person reads it: 4 significant digits at most, thousands as k and M."""
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


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most `most` of them and as many as that allows."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        factor * power
        for factor in (1, 2, 2.5, 5, 10, 20)
        if math.floor(high / (factor * power) + 1e-9) - math.ceil(low / (factor * power) - 1e-9) < most
    )
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: beyond, each is the mean of as many neighbours as it takes."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    thinned: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [value for _, value in part if value is not None]
        thinned.append((part[-1][0], sum(values) / len(values) if values else None))
    return thinned


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    name: str,
    hint: str = "",
    bound: float | None = None,
    steps: tuple[float, float] | None = None,
) -> str:
    """A figure with one curve per series; `bound` draws a limit and makes the value axis logarithmic."""
    drawn = [replace(one, points=thin(one.points)) for one in series]
    values = [value for one in drawn for _, value in one.points if value is not None]
    if not values:
        return ""
    x = _step_axis(drawn, steps)
    y = _log_axis([*values, bound]) if bound is not None else _value_axis(values)
    parts = [_grid(x, y)]
    if bound is not None:
        parts.append(
            f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(bound)}" y2="{y(bound)}"/>'
            f'<text class="bound" x="{WIDTH - RIGHT}" y="{y(bound) - 4}" text-anchor="end">bound {short(bound)}</text>'
        )
    longest = max(len(one.points) for one in drawn)
    reach = max(2, longest // 30) if longest >= SMOOTH_FROM else 0
    parts += [_curve(one, x, y, reach if one.smooth else 0) for one in drawn]
    return _figure(
        "".join(parts), [_hover_points(one, x, y) for one in drawn], drawn, x, title=title, name=name, hint=hint
    )


def stacked_bars(series: Sequence[Series], *, title: str, unit: str, hint: str = "") -> str:
    """A figure with one bar per step, the series on top of each other; series share their steps."""
    drawn = [replace(one, points=thin(one.points, 90)) for one in series]
    if not drawn or not drawn[0].points:
        return ""
    steps = [step for step, _ in drawn[0].points]
    totals = [sum(one.points[index][1] or 0.0 for one in drawn) for index in range(len(steps))]
    x = _step_axis(drawn, (steps[0] - 0.5, steps[-1] + 0.5))
    y = Axis(low=0.0, high=(max(totals) or 1.0) * 1.05, begin=HEIGHT - BOTTOM, end=TOP)
    width = max((WIDTH - LEFT - RIGHT) / len(steps) * 0.78, 0.8)
    bars, below = [], [0.0] * len(steps)
    for one in drawn:
        rects = []
        for index, (step, value) in enumerate(one.points):
            bottom, below[index] = below[index], below[index] + (value or 0.0)
            height = y(bottom) - y(below[index])
            if height >= 0.1:
                rects.append(
                    f'<rect x="{x(step) - width / 2:.1f}" y="{y(below[index])}" '
                    f'width="{width:.1f}" height="{height:.1f}"/>'
                )
        bars.append(f'<g fill="{one.color}">{"".join(rects)}</g>')
    hover = [[[step, value, x(step), None] for step, value in one.points] for one in drawn]
    return _figure(_grid(x, y) + "".join(bars), hover, drawn, x, title=title, name="", hint=hint, unit=unit, mean=True)


def reliability_chart(bins: Sequence[Mapping[str, float]], *, title: str, hint: str = "") -> str:
    """Accuracy over confidence, each from one half to 1 or lower, with the diagonal of a model that knows itself.

    A bin has `low`, `high`, `count`, `confidence` and `accuracy` (troupe.evaluation.calibration); its count is the bar below.
    """
    if not bins:
        return ""
    x = Axis(low=0.5, high=1.0, begin=LEFT, end=WIDTH - RIGHT)
    # The bars have the lowest quarter to themselves.
    lowest = math.floor(min(0.4, *(one["accuracy"] for one in bins)) * 10) / 10
    y = Axis(low=lowest - 0.25, high=1.0, begin=HEIGHT - BOTTOM, end=TOP)
    most = max(one["count"] for one in bins)
    bars, dots = [], []
    for one in bins:
        height = one["count"] / most * (y.begin - y(lowest - 0.12))
        told = f"{one['count']:.0f} pairs, confidence {one['confidence']:.3f}, accuracy {one['accuracy']:.3f}"
        width = max(x(one["high"]) - x(one["low"]) - 2, 1.0)
        bars.append(
            f'<rect x="{x(one["low"]) + 1:.1f}" y="{y.begin - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{told}</title></rect>"
            f'<text x="{(x(one["low"]) + x(one["high"])) / 2:.1f}" y="{y.begin - height - 3:.1f}" text-anchor="middle">'
            f"{short(one['count'])}</text>"
        )
        dots.append(
            f'<circle cx="{x(one["confidence"])}" cy="{y(one["accuracy"])}" r="3"><title>{told}</title></circle>'
        )
    points = [(one["confidence"], one["accuracy"]) for one in bins]
    diagonal = f'<line class="diagonal" x1="{x(0.5)}" y1="{y(0.5)}" x2="{x(1.0)}" y2="{y(1.0)}"/>'
    curve = f'<g class="curve" style="stroke:var(--c0);color:var(--c0)">{_path(points, x, y)}{"".join(dots)}</g>'
    return (
        f'<figure class="chart"><figcaption><h3>{html.escape(title)}</h3><p class="hint">{html.escape(hint)}</p></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{_shares(x, y)}'
        f'<g class="counts">{"".join(bars)}</g>{diagonal}{curve}</svg></figure>'
    )


# -- parts -------------------------------------------------------------------------------------------------------


def _step_axis(series: Sequence[Series], steps: tuple[float, float] | None) -> Axis:
    if steps is None:
        found = [step for one in series for step, _ in one.points]
        steps = min(found), max(found)
    low, high = steps
    return Axis(low=low, high=high if high > low else low + 1, begin=LEFT, end=WIDTH - RIGHT)


def _value_axis(values: Sequence[float]) -> Axis:
    """From zero where that costs little of the height, otherwise close around the values."""
    low, high = min(values), max(values)
    if high - low <= RESOLUTION * max(abs(low), abs(high)):
        low, high = (low - abs(low) * 0.1, high + abs(high) * 0.1) if low else (0.0, 1.0)
    room = (high - low) * 0.06
    starts_at_zero = 0 <= low <= 0.5 * high
    return Axis(low=0.0 if starts_at_zero else low - room, high=high + room, begin=HEIGHT - BOTTOM, end=TOP)


def _log_axis(values: Sequence[float]) -> Axis:
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 0.15)
    return Axis(low=10.0**low, high=10.0 ** max(high, low + 1), begin=HEIGHT - BOTTOM, end=TOP, logarithmic=True)


def _grid(x: Axis, y: Axis) -> str:
    if y.logarithmic:
        decades = range(round(math.log10(y.low)), round(math.log10(y.high)) + 1)
        marks = [10.0**decade for decade in decades[:: math.ceil(len(decades) / 5)]]
    else:
        marks = ticks(y.low, y.high)
    labels = [tick_label(mark, marks) for mark in marks]
    small = ' style="font-size:8px"' if any(len(label) > 6 for label in labels) else ""
    lines = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text x="{LEFT - 7}" y="{y(mark) + 3.5}" text-anchor="end"{small}>{label}</text>'
        for mark, label in zip(marks, labels, strict=True)
    )
    steps = "".join(
        f'<text x="{x(mark)}" y="{HEIGHT - 7}" text-anchor="middle">{int(mark):,}</text>'
        for mark in ticks(x.low, x.high, 6)
        if float(mark).is_integer()
    )
    return f'<g class="grid">{lines}{steps}</g>'


def _shares(x: Axis, y: Axis) -> str:
    """The grid of two axes of shares."""
    lines = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text x="{LEFT - 7}" y="{y(mark) + 3.5}" text-anchor="end">{mark:.0%}</text>'
        for mark in ticks(y.low, y.high, 7)
        if mark >= 0
    )
    marks = "".join(
        f'<text x="{x(mark)}" y="{HEIGHT - 7}" text-anchor="{"end" if mark == x.high else "middle"}">{mark:.0%}</text>'
        for mark in ticks(x.low, x.high, 7)
    )
    return f'<g class="grid">{lines}{marks}</g>'


def tick_label(mark: float, marks: Sequence[float]) -> str:
    """As many digits as the marks need, the same on the whole axis; very large and very small ones in short."""
    largest = max(abs(other) for other in marks)
    if mark == 0 or largest >= 1e4 or largest < 1e-2 or largest >= 100 * marks[0] > 0:
        return f"{mark:g}" if 1e-3 <= mark < 1e4 else short(mark)
    digits = next((count for count in range(7) if all(math.isclose(round(m, count), m) for m in marks)), 7)
    return f"{mark:.{digits}f}"


def _curve(one: Series, x: Axis, y: Axis, reach: int) -> str:
    """The curve; with a `reach`, its running mean over the raw one."""
    known = [(step, value) for step, value in one.points if value is not None]
    raw = _path(one.points, x, y)
    if reach:
        drawn = f'<g class="raw">{raw}</g>{_path(_running_mean(known, reach), x, y)}'
    elif len(known) <= 30:
        drawn = raw + "".join(f'<circle cx="{x(step)}" cy="{y(value)}" r="2"/>' for step, value in known)
    else:
        drawn = raw
    kind = "curve dashed" if one.dashed else "curve"
    return f'<g class="{kind}" style="stroke:{one.color};color:{one.color}">{drawn}</g>'


def _path(points: Sequence[Point], x: Axis, y: Axis) -> str:
    commands, pen_down = [], False
    for step, value in points:
        if value is not None:
            commands.append(f"{'L' if pen_down else 'M'}{x(step)} {y(value)}")
        pen_down = value is not None
    return f'<path d="{"".join(commands)}"/>'


def _running_mean(points: Sequence[tuple[float, float]], reach: int) -> list[Point]:
    """Mean over `reach` neighbours on either side, as far as there are."""
    smooth: list[Point] = []
    for index, (step, _) in enumerate(points):
        window = [value for _, value in points[max(index - reach, 0) : index + reach + 1]]
        smooth.append((step, sum(window) / len(window)))
    return smooth


def _hover_points(one: Series, x: Axis, y: Axis) -> list[list[float | None]]:
    return [
        [step, None if value is None else float(f"{value:.5g}"), x(step), None if value is None else y(value)]
        for step, value in one.points
    ]


def _figure(
    drawing: str,
    hover: Sequence[Sequence[Sequence[float | None]]],
    series: Sequence[Series],
    x: Axis,
    *,
    title: str,
    name: str,
    hint: str,
    unit: str = "",
    mean: bool = False,
) -> str:
    """Caption with the values under the cursor (the last, or the mean, when there is none), and the drawing."""
    data = {"x": [x.low, x.high, x.begin, x.end], "width": WIDTH, "unit": unit, "series": hover}
    keys = "".join(
        f'<span class="key">{_label(one) if len(series) > 1 else ""}<b>{_resting_value(one, mean)}{unit}</b></span>'
        for one in series
    )
    dots = "".join(f'<circle class="dot" r="3.5" style="fill:{one.color}"/>' for one in series)
    tooltip = f' title="{html.escape(name)}"' if name else ""
    crowd = " crowd" if len(series) > 1 else ""
    return (
        f"<figure class=\"chart{crowd}\" data-chart='{html.escape(json.dumps(data, separators=(',', ':')))}'>"
        f"<figcaption><h3{tooltip}>{html.escape(title)}</h3><em>{'mean' if mean else 'last'}</em>"
        f'<p class="keys">{keys}</p><p class="hint">{html.escape(hint)}</p></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{drawing}'
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>{dots}</svg></figure>'
    )


def _label(one: Series) -> str:
    style = f"border:2px dotted {one.color}" if one.dashed else f"background:{one.color}"
    return f'<i style="{style}"></i>{html.escape(one.label)} '


def _resting_value(one: Series, mean: bool) -> str:
    known = [value for _, value in one.points if value is not None]
    if not known:
        return "–"
    return short(sum(known) / len(known) if mean else known[-1])
