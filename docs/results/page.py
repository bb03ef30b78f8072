"""Draws docs/results from a run directory: the curve as SVG, and the first held-out answers before and after.

python docs/results/page.py runs/docstrings_small eval/docstrings/rougeL docs/results/docstrings.svg > samples.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from troupe.files import read_lines
from troupe.report.charts import HEIGHT, WIDTH, Series, line_chart

STYLE = (
    "text{font:10.5px sans-serif;fill:#667}.title{font-size:12.5px;fill:#223}.grid line{stroke:#e4e6ee}"
    ".curve{fill:none;stroke-width:1.8;stroke-linejoin:round}.curve circle{fill:currentColor;stroke:none}"
    ".curve .raw{opacity:.3;stroke-width:1.1}.cursor,.dot{display:none}"
)
HEADING = 22
SAMPLES = 6


def curves(lines: Sequence[Mapping[str, Any]], charts: Sequence[tuple[str, str, str]]) -> str:
    """Charts side by side, one per (metric, title, colour): an SVG that needs no page around it."""
    drawn = []
    for place, (name, title, color) in enumerate(charts):
        points = [(line["step"], line[name]) for line in lines if name in line]
        figure = line_chart([Series(label=title, points=points, color=color)], title=title, name=name)
        drawing = re.search(r"<svg[^>]*>(.*)</svg>", figure, re.DOTALL)
        assert drawing is not None, f"the run has no {name}"
        drawn.append(
            f'<g transform="translate({place * WIDTH} {HEADING})">{drawing[1]}'
            f'<text class="title" x="{WIDTH / 2}" y="-6" text-anchor="middle">{title}</text></g>'
        )
    size = f"{len(charts) * WIDTH} {HEIGHT + HEADING}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>\n'
    )


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
