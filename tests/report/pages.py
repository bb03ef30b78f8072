"""What a report holds, read as its script reads it; and run directories in memory."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from troupe.report.report_data import RunRecord


def data_of(page: str) -> dict[str, Any]:
    """The numbers and samples that the page hands to its script."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


def charts_of(page: str) -> dict[str, dict[str, Any]]:
    """Title -> chart, in the order of the page."""
    found = [json.loads(html.unescape(one)) for one in re.findall(r"data-chart='(.*?)'", page)]
    return {chart["title"]: chart for chart in found}


def labels(chart: dict[str, Any]) -> list[str]:
    return [curve["label"] for curve in chart["curves"]]


def curve(page: str, metric: str, run: int = 0) -> list[list[float]]:
    """[step, value] of a metric."""
    found = data_of(page)["runs"][run]
    column = found["metrics"][metric]
    return [[found["x"]["step"][line], value] for line, value in zip(column["lines"], column["values"], strict=True)]


def record(*metrics: dict[str, Any], **given: Any) -> RunRecord:
    """A run with these lines of metrics.jsonl, and nothing else but what is given."""
    empty: dict[str, Any] = {
        "directory": Path("runs/mine"),
        "name": "mine",
        "config_text": "",
        "config": {},
        "status": {},
        "events": [],
        "rollouts": [],
        "answers": [],
        "environment": {},
        "placement": [],
        "timeline": {},
        "calibration": [],
    }
    return RunRecord(**{**empty, "metrics": list(metrics), **given})
