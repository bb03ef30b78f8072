"""The strip of a step: what is nested is part of its bar, what is close is one bar, and a share is never counted twice."""

from __future__ import annotations

from typing import Any

import pytest

from troupe.report.charts import PHASE_COLORS
from troupe.report.report_timeline import timeline_steps


def span(name: str, begin: float, end: float, pid: int = 0, step: int = 1) -> dict[str, Any]:
    """A span in microseconds of a step that begins at 1,000."""
    return {"ph": "X", "name": name, "pid": pid, "ts": 1000 + begin, "dur": end - begin, "step": step}


def tracks(*spans: dict[str, Any], names: tuple[str, ...] = ("driver", "policy 0")) -> list[dict[str, Any]]:
    trace = {"traceEvents": [span("step 1", 0, 1000), *spans], "tracks": list(names)}
    (step,) = timeline_steps(trace)
    return step["tracks"]


def bars(*spans: dict[str, Any]) -> list[tuple[str, float, float]]:
    (track,) = tracks(*spans)
    return [(bar["kind"], round(bar["begin"], 6), round(bar["end"], 6)) for bar in track["bars"]]


def test_a_bar_is_where_its_span_is_within_the_step() -> None:
    (track,) = tracks(span("rollout", 100, 400), span("update", 500, 1000))
    assert [(bar["kind"], bar["begin"], bar["end"]) for bar in track["bars"]] == [
        ("rollout", 0.1, 0.4),
        ("update", 0.5, 1.0),
    ]
    assert track["busy"] == pytest.approx(0.8)
    assert [bar["color"] for bar in track["bars"]] == [PHASE_COLORS["rollout"], PHASE_COLORS["update"]]
    assert track["bars"][0]["title"] == "rollout: 3e-4 s, from 1e-4 s"


def test_what_is_nested_is_part_of_the_bar_around_it() -> None:
    assert bars(span("rollout", 100, 400), span("tokenize", 150, 200), span("score", 300, 400)) == [
        ("rollout", 0.1, 0.4)
    ]


def test_work_of_one_kind_with_a_small_gap_is_one_bar_and_with_a_large_one_two() -> None:
    assert bars(span("generate", 0, 100), span("generate", 103, 200)) == [("rollout", 0.0, 0.2)]
    assert bars(span("generate", 0, 100), span("generate", 105, 200)) == [
        ("rollout", 0.0, 0.1),
        ("rollout", 0.105, 0.2),
    ]
    assert [kind for kind, _, _ in bars(span("generate", 0, 100), span("score", 101, 200))] == ["rollout", "reward"]


def test_bars_that_overlap_are_counted_once() -> None:
    (track,) = tracks(span("generate", 0, 600), span("score", 400, 1000))
    assert track["busy"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("generate", "rollout"),
        ("receive weights", "publish"),
        ("sync: transfer", "publish"),
        ("logprobs", "reference"),
        ("optimizer step", "update"),
        ("save", "checkpoint"),
        ("something of mine", "something of mine"),
    ],
)
def test_a_workers_work_has_the_colour_of_the_phase_that_waits_for_it(name: str, kind: str) -> None:
    ((found, _, _),) = bars(span(name, 0, 10))
    assert found == kind
    (track,) = tracks(span(name, 0, 10))
    assert track["bars"][0]["color"] == PHASE_COLORS.get(kind, PHASE_COLORS["other"])


def test_each_process_has_a_track_and_one_that_did_nothing_has_none() -> None:
    found = tracks(span("rollout", 0, 100), span("update", 0, 100, pid=2), names=("driver", "policy 0", "policy 1"))
    assert [track["name"] for track in found] == ["driver", "policy 1"]


def test_the_latest_two_steps_are_shown_and_one_without_its_whole_span_is_not() -> None:
    events = [span(f"step {step}", 0, 100, step=step) for step in (1, 2, 3)] + [span("rollout", 0, 10, step=4)]
    assert [found["step"] for found in timeline_steps({"traceEvents": events, "tracks": ["driver"]})] == [3]
    events.append(span("step 4", 0, 2_000_000, step=4))
    found = list(timeline_steps({"traceEvents": events, "tracks": ["driver"]}))
    assert [one["step"] for one in found] == [3, 4]
    assert found[1]["seconds"] == 2.0
    assert found[1]["kinds"] == {"rollout": PHASE_COLORS["rollout"]}


def test_a_trace_without_steps_has_no_strip() -> None:
    assert list(timeline_steps({})) == []
    assert list(timeline_steps({"traceEvents": [{"ph": "M", "name": "process_name"}]})) == []


def test_a_step_of_no_length_divides_by_nothing() -> None:
    trace = {"traceEvents": [span("step 1", 0, 0), span("rollout", 0, 0)], "tracks": ["driver"]}
    (found,) = timeline_steps(trace)
    assert [bar["end"] for bar in found["tracks"][0]["bars"]] == [0.0]
