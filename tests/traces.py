"""What must hold of the timeline of any run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from troupe.files import read_lines

CLOCKS_S = 0.25
"""Two clocks are read one after the other, and on a busy machine a process may be held up in between."""


def assert_nested_and_covering(run: Path) -> None:
    """In each lane spans nest and lie in their step; the driver's phases are those of metrics.jsonl, and as long."""
    events = [event for event in json.loads((run / "timeline.json").read_text())["traceEvents"] if event["ph"] == "X"]
    lines = {line["step"]: line for line in read_lines(run / "metrics.jsonl")}
    for step in {event["step"] for event in events}:
        mine = sorted((event for event in events if event["step"] == step), key=lambda one: (one["ts"], -one["dur"]))
        (whole,) = [event for event in mine if event["name"] == f"step {step}"]
        assert whole["dur"] / 1e6 == pytest.approx(lines[step]["time/step_s"], abs=CLOCKS_S)
        for lane in {(event["pid"], event["tid"]) for event in mine}:
            assert_nested([event for event in mine if (event["pid"], event["tid"]) == lane], whole)
        top = [event for event in mine if event["pid"] == 0 and event is not whole]
        for name, seconds in lines[step].items():
            phase = name.removeprefix("time/").removesuffix("_s")
            if name.startswith("time/") and phase not in ("step", "other", "outer"):
                drawn = sum(event["dur"] for event in top if event["name"] == phase) / 1e6
                assert drawn == pytest.approx(seconds, abs=CLOCKS_S), f"{phase} of step {step}"


def assert_nested(lane: Sequence[dict[str, Any]], whole: dict[str, Any]) -> None:
    """`lane` is sorted by beginning, and longer before shorter."""
    ends: list[int] = []
    for event in lane:
        end = event["ts"] + event["dur"]
        assert whole["ts"] <= event["ts"] <= end <= whole["ts"] + whole["dur"], event
        while ends and ends[-1] <= event["ts"]:
            ends.pop()
        assert not ends or end <= ends[-1], event
        ends.append(end)
