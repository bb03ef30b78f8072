"""A run at a glance in a terminal: its progress, curves, phases, last events and last sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from troupe.processes.progress import duration
from troupe.report.charts import short
from troupe.report.report_data import RunRecord, day_and_time
from troupe.report.report_titles import title_of

CURVES = (
    "reward/mean",
    "loss",
    "sft/nll",
    "reward_model/accuracy",
    "dpo/accuracy",
    "tokens_per_second",
    "policy/kl",
    "rollout/response_tokens",
    "rollout/lag",
    "consistency/logprob_gap",
)
"""Shown in this order where the run has them, behind the held-out metric that decides."""
NOT_WHILE_ZERO = ("rollout/lag", "policy/kl")
RECENT = 10
"""Steps whose mean tells the time that is left."""
MOST_EVENTS, SAMPLE_LINES = 4, 4
BARS = "▁▂▃▄▅▆▇█"
STATE_STYLES = {"running": "bold blue", "finished": "bold green", "stopped": "bold yellow", "failed": "bold red"}


def screen(run: RunRecord, *, width: int, gone: bool, moment: datetime | None = None) -> RenderableType:
    """Return the run as it is at `moment` (now); `gone`: its process has ended without a last word in status.json."""
    parts = [_head(run, gone, moment or datetime.now(UTC))]
    if run.metrics:
        parts += [_curves(run, width), _phases(run, width)]
    else:
        parts.append(Text("No step has ended yet: actors start, or the state before training is evaluated.", "dim"))
    return Group(*(part for found in [*parts, _events(run), _sample(run)] for part in (Text(), found)))


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Return at most `width` bars from the lowest to the highest value; a gap where there is none."""
    each = max(math.ceil(len(values) / width), 1)
    parts = [
        [value for value in values[start : start + each] if value is not None] for start in range(0, len(values), each)
    ]
    points = [sum(part) / len(part) if part else None for part in parts]
    known = [value for value in points if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(
        " " if value is None else BARS[round((value - low) / span * (len(BARS) - 1)) if span else 3] for value in points
    )


def remaining_s(run: RunRecord) -> float | None:
    """Return the seconds that are left at the pace of the last steps; None where it has none yet, or has ended."""
    steps, recent = run.status.get("steps"), run.values("time/step_s")[-RECENT:]
    if run.state != "running" or not isinstance(steps, int) or not recent:
        return None
    return sum(recent) / len(recent) * max(steps - run.last_step, 0)


def _head(run: RunRecord, gone: bool, moment: datetime) -> RenderableType:
    steps = run.status.get("steps") or 0
    ended = gone and run.state == "running"
    state = Text("its process is gone", "bold red") if ended else Text(run.state, STATE_STYLES.get(run.state, "bold"))
    facts = [f"step {run.last_step}" + (f" of {steps}" if steps else "")]
    if recent := run.values("time/step_s")[-RECENT:]:
        facts.append(f"{short(sum(recent) / len(recent))} s a step")
    left = remaining_s(run)
    if left is not None and not ended:
        facts.append(f"{duration(left)} left")
    facts.append(f"{duration(run.wall_s)} so far")
    if run.restarts:
        facts.append(f"restarted {run.restarts} times" if run.restarts > 1 else "restarted once")
    if (age := _age_s(run, moment)) is not None and run.state == "running":
        facts.append(f"last sign {duration(age)} ago")
        if waits_for := run.status.get("waits_for"):
            waited = _age_s(run, moment, "waits_since")
            facts.append(f"waits: {plain(str(waits_for))}" + (f", {duration(waited)}" if waited is not None else ""))
    title = Text.assemble((run.name, "bold"), "  ", state, "  ", ("  ".join(facts), ""))
    failure = next((event for event in reversed(run.events) if event.get("kind") == "failed"), None)
    lines: list[RenderableType] = [title, ProgressBar(total=max(steps, 1), completed=min(run.last_step, max(steps, 1)))]
    if run.state == "failed" and failure is not None:
        lines.append(Text(plain(str(failure.get("error", ""))), "red"))
    return Group(*lines)


def _age_s(run: RunRecord, moment: datetime, key: str = "updated") -> float | None:
    try:
        return max((moment - datetime.fromisoformat(str(run.status.get(key)))).total_seconds(), 0.0)
    except ValueError:
        return None


def _curves(run: RunRecord, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, max_width=34)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    room = max(width - 34 - 26, 8)
    for name in _shown(run):
        first, last = run.first_and_last(name) or (0.0, 0.0)
        values = [value for _, value in run.points(name)]
        change = Text.assemble((f"{short(first)} → ", "dim"), (short(last), "bold"))
        table.add_row(title_of(name)[0], change, sparkline(values, room))
    return table


def _shown(run: RunRecord) -> Iterator[str]:
    for name in dict.fromkeys([*([run.headline] if run.headline else []), *CURVES]):
        if run.first_and_last(name) and not (name in NOT_WHILE_ZERO and not any(run.values(name))):
            yield name


def _phases(run: RunRecord, width: int) -> RenderableType:
    if not run.phases:
        return Text()
    means = sorted(((phase, run.seconds(phase)) for phase in run.phases), key=lambda one: -one[1])
    total = sum(seconds for _, seconds in means) or 1.0
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="dim")
    table.add_column(no_wrap=True, style="magenta")
    room = max(min(width - 40, 50), 8)
    for phase, seconds in means:
        share = seconds / total
        if share >= 0.005:
            table.add_row(phase, f"{short(seconds)} s", f"{share:.0%}", "━" * max(round(share * room), 1))
    return table


def _events(run: RunRecord) -> RenderableType:
    lines = []
    for event in run.events[-MOST_EVENTS:]:
        more = "  ".join(
            f"{name} {plain(str(value))[:80]}"
            for name, value in event.items()
            if name not in ("at", "step", "kind", "traceback")
        )
        when = day_and_time(str(event.get("at", "")))[11:]
        lines.append(
            Text.assemble(
                (f"{when}  ", "dim"), str(event.get("kind")), (f"  {more}", "dim"), overflow="ellipsis", no_wrap=True
            )
        )
    return Group(*lines)


def _sample(run: RunRecord) -> RenderableType:
    """Show the last sampled group: its prompt, and its best answer."""
    if not run.rollouts:
        return Text()
    group = run.rollouts[-1]
    branches: list[dict[str, Any]] = group.get("branches") or []
    scored = [branch for branch in branches if isinstance(branch.get("score"), int | float)]
    best = max(scored, key=lambda branch: branch["score"], default=branches[0] if branches else {})
    scores = " ".join(short(branch["score"]) for branch in scored)
    return Group(
        Text.assemble(
            (f"step {group.get('step')}  {group.get('sample_id')}", "dim"),
            (f"  rewards {scores}", "dim"),
            overflow="ellipsis",
            no_wrap=True,
        ),
        Text("\n".join(_lines(str(group.get("prompt", ""))))),
        Text("\n".join(_lines(str(best.get("text", "")))), "green"),
    )


def _lines(text: str) -> list[str]:
    """Return the first lines, cut where they are long."""
    lines = [line for line in plain(text).splitlines() if line.strip()]
    shown = [line[:300] for line in lines[:SAMPLE_LINES]]
    return shown + (["..."] if len(lines) > SAMPLE_LINES else [])


def plain(text: str) -> str:
    """Return what a model wrote, without the control characters by which it could steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "·" for char in text)
