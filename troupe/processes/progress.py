"""The face of a running job: a live bar on a terminal, a plain line now and then elsewhere.

It shows the step, the reward or the training loss, the held-out metric, tokens per second and the time that is left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


SUPERVISED = {"sft": ("nll",), "reward_model": ("nll", "accuracy"), "dpo": ("nll", "accuracy")}
"""What is told of a supervised job's training; of the held-out set its last one, the deciding one."""


EVALUATED = "evaluated at step"
"""Beside the metrics, the step whose held-out metrics they are."""


def headline(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the few numbers worth a glance, as label and text."""
    told = {"reward": "reward/mean"}
    family = next((family for family, leaves in SUPERVISED.items() if f"{family}/{leaves[-1]}" in metrics), None)
    leaves = SUPERVISED.get(family or "", ())
    told |= {leaf: f"{family}/{leaf}" for leaf in leaves}
    decides = leaves[-1] if leaves else None
    held_out = [name for name in metrics if name.startswith("eval/")]
    deciding = [name for name in held_out if name.rpartition("/")[2] == decides]
    for name in [*deciding, *held_out][:1]:
        told[f"held-out {name.rpartition('/')[2]}"] = name
    told |= {"loss": "loss"}
    shown = {label: f"{metrics[name]:.3f}" for label, name in told.items() if name in metrics}
    if EVALUATED in metrics:  # evaluations are rarer than steps
        at = f" (step {metrics[EVALUATED]:.0f})"
        shown = {label: text + at if label.startswith("held-out") else text for label, text in shown.items()}
    if "tokens_per_second" in metrics:
        shown["tokens/s"] = f"{metrics['tokens_per_second']:,.0f}"
    return shown


def duration(seconds: float) -> str:
    """Return `42s`, `3m05s`, `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class ProgressBar:
    """A live bar over the steps `first..last`."""

    def __init__(self, name: str, first: int, last: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task = self._progress.add_task(name, total=last, completed=first - 1, numbers="")
        self._progress.start()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        numbers = "  ".join(f"[dim]{label}[/dim] {text}" for label, text in headline(metrics).items())
        self._progress.update(self._task, completed=step, numbers=numbers)

    def close(self) -> None:
        self._progress.stop()


class ProgressLines:
    """Lines for a log file: at most one every few seconds, and one for the last step."""

    def __init__(self, name: str, first: int, last: int, stream: Any = None) -> None:
        self._name, self._first, self._last = name, first, last
        self._stream = stream or sys.stdout
        self._begun = time.monotonic()
        self._next_line = self._begun

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        moment = time.monotonic()
        if moment < self._next_line and step != self._last:
            return
        self._next_line = moment + SECONDS_BETWEEN_LINES
        step_s = (moment - self._begun) / max(step - self._first + 1, 1)
        numbers = "".join(f"  {label} {text}" for label, text in headline(metrics).items())
        left = duration(step_s * (self._last - step))
        line = f"{self._name}  step {step}/{self._last}{numbers}  {step_s:.2f} s/step  {left} left"
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        pass


def build_progress(name: str, first: int, last: int, console: Console) -> ProgressBar | ProgressLines:
    """Return the bar when somebody watches, lines otherwise."""
    return ProgressBar(name, first, last, console) if console.is_terminal else ProgressLines(name, first, last)
