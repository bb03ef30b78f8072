"""Prints the held-out figures of runs before and after training, as Markdown: one table a metric, one row a run.

python docs/results/table.py strict,lenient runs/a runs/b runs/c
python docs/results/table.py lenient runs/without runs/with --across

Changes are paired by sample, with 95 % bootstrap intervals; the last row is of each sample's mean over the runs.
`--across`: and what the last run has at its end above the first.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from troupe.files import read_lines
from troupe.statistics import Estimate, estimate_difference

Pairs = dict[str, tuple[float, float]]
"""Sample -> its value (before, after)."""


def pairs(run: Path, metric: str) -> tuple[Pairs, int]:
    """Return the samples that the first and the last evaluation answered, and the step of the last."""
    rows = [row for row in read_lines(run / "answers.jsonl") if metric in row["metrics"]]
    assert rows, f"{run} has no held-out {metric}"
    first, last = rows[0]["step"], rows[-1]["step"]
    before, after = (
        {row["sample_id"]: row["metrics"][metric] for row in rows if row["step"] == step} for step in (first, last)
    )
    return {sample: (before[sample], after[sample]) for sample in before.keys() & after.keys()}, last


def table(metric: str, runs: Sequence[Path]) -> str:
    lines = [f"| {metric} | before | after | paired change, 95 % |", "|---|---|---|---|"]
    measured = [pairs(run, metric) for run in runs]
    lines += [
        row(f"{run.name}, {len(found)} samples, step {step}", found)
        for run, (found, step) in zip(runs, measured, strict=True)
    ]
    if len(runs) > 1:
        lines.append(row("mean of the runs", mean_of([found for found, _ in measured])))
    return "\n".join(lines) + "\n"


def across(metric: str, first: Path, last: Path) -> str:
    """Return the row of what `last` has at its end above what `first` has at its own."""
    (theirs, _), (ours, _) = pairs(first, metric), pairs(last, metric)
    shared = {sample: (theirs[sample][1], ours[sample][1]) for sample in theirs.keys() & ours.keys()}
    return row(f"{last.name} above {first.name}, {len(shared)} samples", shared)


def mean_of(runs: Sequence[Pairs]) -> Pairs:
    """Return each sample's mean over the runs that all answered it."""
    shared = set.intersection(*(set(run) for run in runs))
    return {
        sample: (statistics.mean(run[sample][0] for run in runs), statistics.mean(run[sample][1] for run in runs))
        for sample in shared
    }


def row(label: str, found: Pairs) -> str:
    before, after = zip(*(found[sample] for sample in sorted(found)), strict=True)
    means = f"{statistics.mean(before):.3f} | {statistics.mean(after):.3f}"
    return f"| {label} | {means} | {shown(estimate_difference(after, before))} |"


def shown(change: Estimate) -> str:
    text = f"{change.mean:+.3f} ({change.low:+.3f} .. {change.high:+.3f})"
    return f"**{text}**" if change.excludes(0) else text


if __name__ == "__main__":
    metrics, *given = [argument for argument in sys.argv[1:] if argument != "--across"]
    runs = [Path(run) for run in given]
    for metric in metrics.split(","):
        print(table(metric, runs) + (across(metric, runs[0], runs[-1]) + "\n" if "--across" in sys.argv else ""))
