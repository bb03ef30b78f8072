"""The curves of a report, by group: of one run, and of several over each other.

What metrics are called and which of them share a chart is said in `troupe.report.report_titles`.
"""

from __future__ import annotations

from collections.abc import Sequence

from troupe.report.charts import Series, line_chart, reliability_chart, short, stacked_bars
from troupe.report.report_data import RunRecord
from troupe.report.report_page import section, table
from troupe.report.report_titles import FAMILIES, GROUPS, OTHER, SPEED, TITLES, Plot, group_of, plots, title_of

GAP = "consistency/logprob_gap"

__all__ = ["calibration", "curve_groups", "curve_sections", "phase_chart", "phase_color", "run_color", "title_of"]

PHASE_COLORS = {
    "rollout": "var(--c0)",
    "update": "var(--c1)",
    "reference": "var(--c3)",
    "publish": "var(--c2)",
    "evaluate": "var(--c6)",
    "evaluation": "var(--c6)",
    "reward": "var(--c4)",
    "checkpoint": "var(--c7)",
    "advantage": "var(--c5)",
    "other": "var(--c8)",
}


def curve_groups(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Charts of every metric of the runs, as HTML by group, in reading order.

    In the report of one run, metrics that are read together share a chart; of several runs each metric has its own.
    """
    names = [
        name for name in dict.fromkeys(name for run in runs for name in run.names()) if not _says_twice(runs, name)
    ]
    groups = {}
    for group in [*GROUPS, OTHER]:
        members = sorted((name for name in names if group_of(name) == group), key=lambda name: _rank(runs[0], name))
        if len(runs) == 1:
            charts = "".join(shared_chart(runs[0], plot) for plot in plots(members))
        else:
            charts = "".join(metric_chart(runs, name) for name in members)
        if charts:
            groups[_heading(group, members)] = f'<div class="charts">{charts}</div>'
    return groups


def curve_sections(runs: Sequence[RunRecord]) -> str:
    return "".join(section(title, charts) for title, charts in curve_groups(runs).items())


def _heading(group: str, members: Sequence[str]) -> str:
    """Jobs without generators have no consistency to speak of."""
    compared = any(name.startswith("consistency/") for name in members)
    return "Data and speed" if group == SPEED and not compared else group


def _says_twice(runs: Sequence[RunRecord], name: str) -> bool:
    """Whether it is a loss that is the NLL and nothing else."""
    family, _, leaf = name.partition("/")
    if family not in FAMILIES or leaf != "loss":
        return False
    return all(run.points(name) == run.points(f"{family}/nll") for run in runs)


def shared_chart(run: RunRecord, plot: Plot) -> str:
    """A chart of one run, with a curve for each of the plot's members."""
    if len(plot.members) == 1:
        return metric_chart([run], plot.members[0].metric)
    drawn = [
        Series(
            label=member.label,
            points=run.points(member.metric),
            color=run_color(member.color),
            dashed=member.held_out,
            smooth=not member.held_out,
        )
        for member in plot.members
    ]
    name = ", ".join(member.metric for member in plot.members)
    return line_chart(drawn, title=plot.title, name=name, hint=plot.hint, steps=_steps([run]))


def metric_chart(runs: Sequence[RunRecord], name: str) -> str:
    """One metric of all runs that logged it, on the common range of steps."""
    title, hint = title_of(name)
    # Step 0 holds the start of the actors, beside which a step's seconds could not be read.
    first = 1 if name.startswith("time/") else 0
    curves = [[point for point in run.points(name) if point[0] >= first] for run in runs]
    drawn = [
        Series(label=run.name, points=points, color=run_color(index))
        for index, (run, points) in enumerate(zip(runs, curves, strict=True))
        if points
    ]
    bound = None
    if name == GAP:
        bound = min((run.consistency_bound for run in runs if run.consistency_bound is not None), default=None)
        drawn += _noises(runs)
    return line_chart(drawn, title=title, name=name, hint=hint, bound=bound, steps=_steps(runs))


def _noises(runs: Sequence[RunRecord]) -> list[Series]:
    """What the trainers' own rounding makes, from which the bound follows; dashed, in the colour of its run."""
    return [
        Series(
            label="rounding alone" if len(runs) == 1 else f"{run.name}, rounding alone",
            points=points,
            color=run_color(index),
            dashed=True,
        )
        for index, run in enumerate(runs)
        if (points := run.points("consistency/noise"))
    ]


def _steps(runs: Sequence[RunRecord]) -> tuple[int, int]:
    """The range of steps that every chart of the page has."""
    return min((run.metrics[0]["step"] for run in runs if run.metrics), default=0), max(run.last_step for run in runs)


def calibration(run: RunRecord) -> str:
    """How far the confidence of a reward model can be believed, as a chart and its numbers."""
    bins = run.calibration
    if not bins:
        return ""
    rows = [
        (
            f"{one['low']:.0%} – {one['high']:.0%}",
            short(one["count"]),
            f"{one['confidence']:.1%}",
            f"{one['accuracy']:.1%}",
        )
        for one in bins
    ]
    pairs = int(sum(one["count"] for one in bins))
    lead = (
        f"{pairs:,} held-out pairs by the model's confidence, sigmoid(|score difference|). On the diagonal it is right as "
        "often as it says; below it is overconfident."
    )
    chart = reliability_chart(bins, title="Reliability", hint="share of pairs it ranks rightly, by its confidence")
    numbers = table(["Confidence", "Pairs", "Mean confidence", "Accuracy"], rows, numbers=(1, 2, 3))
    return f'<p class="lead" style="margin:-8px 0 14px">{lead}</p><div class="split">{chart}{numbers}</div>'


def run_color(index: int) -> str:
    return f"var(--c{index % 8})"


def phase_chart(run: RunRecord) -> str:
    """Stacked seconds per step."""
    series = [
        Series(
            label=phase,
            points=[(line["step"], line.get(f"time/{phase}_s") or 0.0) for line in run.training],
            color=phase_color(run, phase),
        )
        for phase in run.phases
    ]
    return stacked_bars(series, title="Seconds of a step", unit=" s")


def phase_color(run: RunRecord, phase: str) -> str:
    """The same colour for a phase in every report; phases of other jobs take what is left."""
    if phase in PHASE_COLORS:
        return PHASE_COLORS[phase]
    taken = {PHASE_COLORS.get(known) for known in run.phases}
    free = [color for color in map(run_color, range(8)) if color not in taken] or [run_color(0)]
    unknown = [known for known in run.phases if known not in PHASE_COLORS]
    return free[unknown.index(phase) % len(free)]


def _rank(run: RunRecord, name: str) -> tuple[int, int, str]:
    """The headline metric first, then held-out ones, then those with a title, then the rest by name."""
    titled = list(TITLES).index(name) if name in TITLES else len(TITLES)
    return (0 if name == run.headline else 1 if name.startswith("eval/") else 2, titled, name)
