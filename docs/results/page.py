"""Draws docs/results from a run directory: the curve as SVG, and the first held-out answers before and after.

python docs/results/page.py runs/docstrings_small eval/docstrings/rougeL docs/results/docstrings.svg > samples.md
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from troupe.files import read_lines

SAMPLES = 6


def curves(lines: Sequence[Mapping[str, Any]], charts: Sequence[tuple[str, str, str]]) -> str:
    """Draw charts side by side, one per (metric, title, colour), as an SVG that needs no page around it."""
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    for axes, (name, title, color) in zip(figure.subplots(1, len(charts)), charts, strict=True):
        points = [(line["step"], line[name]) for line in lines if name in line]
        assert points, f"the run has no {name}"
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", color="#e4e6ee")
        axes.spines[["top", "right"]].set_visible(False)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "troupe"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def samples(answers: Sequence[Mapping[str, Any]], metric: str, count: int = SAMPLES) -> str:
    """The first `count` held-out samples as Markdown, with the first and the last answer: not chosen by hand."""
    first, last = answers[0]["step"], answers[-1]["step"]
    after = {row["sample_id"]: row for row in answers if row["step"] == last}
    parts = []
    for before in [row for row in answers if row["step"] == first][:count]:
        text = before["prompt"].removeprefix("user: ")
        rows = [("before", before), ("after", after[before["sample_id"]])]
        table = "\n".join(f"| {label} | {_cell(row['text'])} | {row['metrics'][metric]:.2f} |" for label, row in rows)
        parts.append(
            f"`{before['sample_id']}`\n\n```text\n{text}\n```\n\n| | answer | {metric} |\n|---|---|---|\n"
            f"| gold | {_cell(before['gold'] or '')} | |\n{table}\n"
        )
    return "\n".join(parts)


def _cell(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|").replace("*", "\\*").replace('\\"', '"')


if __name__ == "__main__":
    run, metric, drawing = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    label = metric.split("/", 2)[2]  # eval/<set>/<metric>
    charts = (
        (metric, f"held-out {label} by step", "#2f5fc4"),
        (f"reward/{label}", f"sampled {label} by step", "#d97b29"),
    )
    drawing.write_text(curves(read_lines(run / "metrics.jsonl"), charts), encoding="utf-8")
    print(samples(read_lines(run / "answers.jsonl"), label))
