"""The screen of a run, part by part: who is shown, how long it takes, what was said last."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from tests.report.pages import record
from troupe.report.report_data import RunRecord
from troupe.report.watch_screen import plain, remaining_s, screen, sparkline

MOMENT = datetime(2026, 1, 1, 0, 10, tzinfo=UTC)


def shown(run: RunRecord, *, gone: bool = False, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(screen(run, width=width, gone=gone, moment=MOMENT))
    return console.export_text()


def running(*lines: dict[str, Any], **status: Any) -> RunRecord:
    return record(*lines, status={"state": "running", "steps": 10, **status})


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([0, 7], 8, "▁█"),
        ([0.0, 3.5, 7.0], 8, "▁▅█"),
        ([-1, -8], 8, "█▁"),
        ([5], 8, "▄"),
        ([None, None], 8, ""),
        ([], 8, ""),
        ([0, 2, 6, 8], 2, "▁█"),  # means of two and two: 1 and 7
        ([1, None, None, 3], 2, "▁█"),  # a mean is over what is there
        ([1, None, None, None, 3], 3, "▁ █"),
    ],
)
def test_a_sparkline_is_of_means_between_the_lowest_and_the_highest(values: list[Any], width: int, bars: str) -> None:
    assert sparkline(values, width) == bars


def test_the_time_that_is_left_is_by_the_last_ten_steps() -> None:
    slow = [{"step": step, "time/step_s": 100.0} for step in range(1, 6)]
    fast = [{"step": step, "time/step_s": 2.0} for step in range(6, 16)]
    assert remaining_s(running(*slow, *fast, steps=20)) == 2.0 * 5
    assert remaining_s(running(*slow, steps=20)) == 100.0 * 15
    assert remaining_s(running(*slow, steps=3)) == 0.0  # it has done more than was asked for
    assert remaining_s(running(steps=20)) is None
    assert remaining_s(running(*slow, steps="?")) is None
    assert remaining_s(record(*slow, status={"state": "finished", "steps": 20})) is None


@pytest.mark.parametrize(
    ("status", "gone", "text"),
    [
        ({"updated": "2026-01-01T00:09:00Z"}, False, "last sign 1m00s ago"),
        ({"updated": "2026-01-01T00:11:00Z"}, False, "last sign 0s ago"),  # clocks of two machines differ
        (
            {"updated": "2026-01-01T00:09:59Z", "waits_for": "a GPU\x1b[31m", "waits_since": "2026-01-01T00:08:00Z"},
            False,
            "waits: a GPU·[31m, 2m00s",
        ),
        ({"updated": "soon"}, False, "step 1 of 10"),
        ({"updated": "2026-01-01T00:09:00Z"}, True, "its process is gone"),
        ({"state": "stopped"}, True, "stopped"),
    ],
)
def test_the_head_says_how_the_run_is(status: dict[str, Any], gone: bool, text: str) -> None:
    run = running({"step": 1, "time/step_s": 2.0}, **status)
    found = shown(run, gone=gone, width=200)
    assert text in found
    assert ("left" in found) == (not gone)


def test_a_run_that_failed_shows_its_last_error() -> None:
    events = [
        {"kind": "failed", "error": "old"},
        {"kind": "restarted"},
        {"kind": "failed", "error": "out of\x07 memory"},
    ]
    found = shown(record({"step": 1}, status={"state": "failed"}, events=events))
    assert "out of· memory" in found
    assert "restarted once" in found


def test_curves_are_the_deciding_metric_and_known_ones_that_say_something() -> None:
    lines = [
        {"step": step, "eval/a/f1": 0.1 * step, "reward/mean": 1.0, "rollout/lag": 0, "policy/kl": 0.0, "mine": 3}
        for step in (1, 2)
    ]
    found = shown(running(*lines))
    assert "F1, held out" in found
    assert "0.100 → 0.200" in found
    assert "Reward" in found
    assert "Lag" not in found  # while it is 0
    assert "KL to the reference" not in found
    assert "Mine" not in found
    assert "Lag" in shown(running(*lines, {"step": 3, "rollout/lag": 1}))


def test_phases_are_ordered_by_their_seconds_and_crumbs_are_left_out() -> None:
    line = {"step": 1, "time/update_s": 6.0, "time/rollout_s": 3.0, "time/publish_s": 0.001, "time/other_s": 1.0}
    found = [text for text in shown(running(line)).splitlines() if "%" in text]
    assert [text.split()[0] for text in found] == ["update", "rollout", "other"]
    assert [text.split()[3] for text in found] == ["60%", "30%", "10%"]


def test_the_last_events_are_shown_with_what_they_hold_but_for_tracebacks() -> None:
    events = [
        {"at": f"2026-01-01T00:00:0{n}Z", "kind": f"kind{n}", "step": n, "engine": n, "traceback": "x" * 200}
        for n in range(6)
    ]
    found = shown(running({"step": 1}, {"step": 2}), width=80) and shown(record({"step": 1}, events=events))
    assert "kind1" not in found
    assert "00:00:05  kind5  engine 5" in found
    assert "xxx" not in found


def test_the_sample_is_the_best_answer_of_the_last_group() -> None:
    branches = [{"text": "worse", "score": 0.25}, {"text": "best", "score": 0.5}, {"text": "unjudged", "score": None}]
    prompt = "\n\n".join(f"line {n}" for n in range(6))
    group = {"step": 3, "sample_id": "a/1", "prompt": prompt, "branches": branches}
    found = shown(running({"step": 3}, **{}), width=100) and shown(record({"step": 3}, rollouts=[group]))
    assert "step 3  a/1  rewards 0.250 0.500" in found
    assert "best" in found
    assert "worse" not in found
    assert "line 3" in found
    assert "line 4" not in found
    assert "..." in found
    # Without a score the first is shown, and without a branch nothing breaks.
    assert "unjudged" in shown(record({"step": 1}, rollouts=[{**group, "branches": branches[2:]}]))
    assert "a/1" in shown(record({"step": 1}, rollouts=[{**group, "branches": []}]))


@pytest.mark.parametrize(
    ("text", "shown_as"),
    [("a\nb", "a\nb"), ("a\tb\r", "a·b·"), ("\x1b[2J", "·[2J"), ("é日本", "é日本"), ("\u202eabc", "·abc"), ("", "")],
)
def test_what_cannot_be_printed_is_a_dot(text: str, shown_as: str) -> None:
    assert plain(text) == shown_as
