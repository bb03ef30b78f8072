"""What a job shows a person: placement, arithmetic, the warm start's bar, and at the end before and after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rich
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from troupe.actors.placement import Cluster
from troupe.files import read_lines
from troupe.report.samples import paired_change

SHOWN_ANSWERS = 3
WARM_START_LINES = 20
"""Lines about the warm start in a log file."""
MAX_TEXT = 200


def print_opening(config: Any, cluster: Cluster, precision: str) -> None:
    """Print the placement table and the derived numbers."""
    table = Table(title=f"{config.run.name} on {cluster.machine.device} in {precision}", title_justify="left")
    for column in ("role", "rank", "place", "machine", "device"):
        table.add_column(column)
    for row in cluster.rows():
        table.add_row(*(str(row[name]) for name in ("role", "rank", "place", "machine", "device")))
    rich.print(table)
    rich.print(config.arithmetic())


@contextlib.contextmanager
def warm_start_progress() -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Provide a bar for the warm start, or lines where nobody watches; none for a cached model, which never reports."""
    console = rich.get_console()
    if not console.is_terminal:
        yield _warm_start_lines
        return
    with contextlib.ExitStack() as stack:
        bar: list[tuple[Progress, Any]] = []

        def report(step: int, steps: int, metrics: dict[str, float]) -> None:
            if not bar:
                columns = (
                    TextColumn("warm start (SFT)"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("loss {task.fields[loss]:.3f}"),
                )
                progress = stack.enter_context(Progress(*columns, TimeRemainingColumn(compact=True)))
                bar.append((progress, progress.add_task("", total=steps, loss=0.0)))
            progress, task = bar[0]
            progress.update(task, completed=step, loss=metrics["sft/nll"])

        yield report


def _warm_start_lines(step: int, steps: int, metrics: dict[str, float]) -> None:
    if step == steps or step % max(1, steps // WARM_START_LINES) == 0:
        print(f"warm start (SFT)  step {step}/{steps}  loss {metrics['sft/nll']:.3f}", flush=True)


def print_summary(directory: Path) -> None:
    """Held-out metrics before and after, the same samples' answers before and after, and where everything is."""
    lines = read_lines(directory / "metrics.jsonl")
    evaluated = [line for line in lines if any(name.startswith("eval/") for name in line)]
    answers = read_lines(directory / "answers.jsonl")
    if evaluated:
        rich.print(_metrics_table(evaluated[0], evaluated[-1], paired_answers(answers)))
    if answers:
        rich.print(_answers_table(answers))
    rich.print(f"report      {directory / 'report.html'}\ncheckpoint  {directory / 'checkpoints' / 'latest'}")


Pairs = Sequence[tuple[dict[str, Any], dict[str, Any]]]
"""Rows of answers.jsonl: of the first evaluation and of the last, by sample."""


def paired_answers(answers: Sequence[dict[str, Any]]) -> Pairs:
    """Return the same samples' answers before and after; none where there was one evaluation."""
    steps = [row["step"] for row in answers]
    if not steps or steps[0] == steps[-1]:
        return []
    before = {(row["set"], row["sample_id"]): row for row in answers if row["step"] == steps[0]}
    after = [row for row in answers if row["step"] == steps[-1]]
    return [(before[key], row) for row in after if (key := (row["set"], row["sample_id"])) in before]


def _metrics_table(before: dict[str, Any], after: dict[str, Any], pairs: Pairs) -> Table:
    names = sorted(name.removeprefix("eval/") for name in after if name.startswith("eval/"))
    sets = sorted({name.partition("/")[0] for name in names})
    # The set is named once where there is one: metrics have long names, consoles 80 columns.
    prefix = f"{sets[0]}/" if len(sets) == 1 else ""
    where = f": {sets[0]}" if prefix else ""
    over = f", changes over {len(pairs)} samples" if pairs else ""
    table = Table(title=f"held out{where}{over}", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for column in (f"step {before['step']}", f"step {after['step']}", *(["change (95 %)"] if pairs else [])):
        table.add_column(column, justify="right")
    for name in names:
        full = f"eval/{name}"
        cells = [name.removeprefix(prefix), f"{before.get(full, float('nan')):.3f}", f"{after[full]:.3f}"]
        if (found := paired_change(pairs, name)) is not None:
            change, _ = found
            cells.append(f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})")
        table.add_row(*cells)
    return table


def _answers_table(answers: list[dict[str, Any]]) -> Table:
    first, last = answers[0]["step"], answers[-1]["step"]
    before = {row["sample_id"]: row for row in answers if row["step"] == first}
    after = [row for row in answers if row["step"] == last and row["sample_id"] in before][:SHOWN_ANSWERS]
    table = Table(title="answers", title_justify="left", show_lines=True)
    for column in ("prompt", "gold", "before", "after"):
        table.add_column(column, overflow="fold")
    for row in after:
        texts = (_without_system_turn(row["prompt"]), row["gold"] or "", before[row["sample_id"]]["text"], row["text"])
        table.add_row(*(escape(text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " ...") for text in texts))
    return table


def _without_system_turn(prompt: str) -> str:
    """Return a prompt from its first user's turn on; what stands before is the same for all."""
    _, turn, rest = prompt.partition("\n\nuser: ")
    return f"user: {rest}" if turn and prompt.startswith("system: ") else prompt
