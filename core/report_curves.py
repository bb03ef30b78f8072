"""The curves of a report: which metrics there are, what they are called, and how they are grouped.

One chart per metric, one curve per run, so that a single run and a comparison are drawn by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.charts import Series, line_chart, stacked_bars
from core.report_data import RunRecord
from core.report_page import section

TITLES = {
    "reward/mean": ("Reward", "mean over the step's answers"),
    "reward/std": ("Spread within groups", "standard deviation of a prompt's rewards; at 0 there is nothing to learn"),
    "policy/kl": ("KL to the reference", "how far the policy moved, nats per token"),
    "policy/entropy": ("Entropy", "nats per token; a collapse to 0 ends exploration"),
    "policy/clip_fraction": ("Clipped tokens", "share of tokens whose ratio left the clip range"),
    "policy/grad_norm": ("Gradient norm", "before clipping"),
    "policy/learning_rate": ("Learning rate", ""),
    "policy/loss": ("Loss", ""),
    "rollout/response_tokens": ("Response length", "mean tokens of an answer"),
    "rollout/truncated_fraction": ("Truncated answers", "share that hit the length limit"),
    "rollout/lag": ("Lag", "age in steps of the weights that sampled"),
    "consistency/logprob_gap": ("Trainer and generator", "mean |difference| of log-probabilities of the same tokens"),
    "tokens_per_second": ("Tokens per second", "over the whole step"),
    "time/step_s": ("Seconds a step", ""),
    "time/publish_s": ("Weight sync", "seconds until the generators have the new weights"),
    "time/sync_s": ("Weight sync", "seconds until the generators have the new weights"),
}
GROUPS = {
    "Learning": ("eval/", "reward/", "loss", "train/"),
    "Policy": ("policy/", "critic/", "value/"),
    "Rollouts": ("rollout/",),
    "Consistency and speed": ("consistency/", "tokens_per_second", "time/step_s", "time/publish_s", "time/sync_s"),
}
HIDDEN = ("consistency/max_gap", "time/")
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


def group_of(name: str) -> str | None:
    """The part of the report a metric belongs to; None for those that are shown elsewhere."""
    if name.endswith(("tokens_per_second", "/tokens")):
        return "Consistency and speed"
    for group, prefixes in GROUPS.items():
        if name.startswith(prefixes) and name not in HIDDEN:
            return group
    return None if name.startswith(HIDDEN) else "Other metrics"


def curve_groups(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Charts of every metric of the runs, as HTML by group, in reading order."""
    names = list(dict.fromkeys(name for run in runs for name in run.names()))
    groups = {}
    for group in [*GROUPS, "Other metrics"]:
        members = [name for name in names if group_of(name) == group]
        charts = "".join(metric_chart(runs, name) for name in sorted(members, key=lambda name: _rank(runs[0], name)))
        if charts:
            groups[group] = f'<div class="charts">{charts}</div>'
    return groups


def curve_sections(runs: Sequence[RunRecord]) -> str:
    return "".join(section(title, charts) for title, charts in curve_groups(runs).items())


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
    bounds = [run.consistency_bound for run in runs if run.consistency_bound is not None]
    bound = min(bounds) if bounds and name == "consistency/logprob_gap" else None
    steps = (min((run.metrics[0]["step"] for run in runs if run.metrics), default=0), max(r.last_step for r in runs))
    return line_chart(drawn, title=title, name=name, hint=hint, bound=bound, steps=steps)


def run_color(index: int) -> str:
    return f"var(--c{index % 8})"


def title_of(name: str) -> tuple[str, str]:
    """(title, hint) of a metric; an unknown one is called by its own name."""
    if name in TITLES:
        return TITLES[name]
    family, _, leaf = name.rpartition("/")
    words = leaf.replace("_", " ").strip()
    if name.endswith("tokens_per_second"):
        return f"Tokens per second, {family}", "within the phase"
    if leaf == "tokens":
        return f"Tokens, {family}", "of a step"
    if family.startswith("eval/"):
        return f"{words.capitalize()}, held out", family.removeprefix("eval/").replace("_", " ")
    if family == "reward":
        return f"Reward: {words}", "unweighted part"
    return words[:1].upper() + words[1:], family


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


def _rank(run: RunRecord, name: str) -> tuple[int, int]:
    """The headline metric first, then held-out ones, then those with a title, then the rest as they came."""
    titled = list(TITLES).index(name) if name in TITLES else len(TITLES)
    return (0 if name == run.headline else 1 if name.startswith("eval/") else 2, titled)
