"""A running job's line: the step, few numbers, the time a step takes, and the time that is left."""

from __future__ import annotations

import io
import types

import pytest
from rich.console import Console

from tests.fake_run import BorrowedClock
from troupe.processes.progress import ProgressBar, ProgressLines, build_progress, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> BorrowedClock:
    clock = BorrowedClock()
    monkeypatch.setattr("troupe.processes.progress.time", types.SimpleNamespace(monotonic=clock))
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),  # not 60s
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (7 * 3600 + 5 * 60 + 59, "7h05m"),
        (30 * 3600, "30h00m"),
    ],
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_comes_at_once_then_every_five_seconds_and_for_the_last_step(clock: BorrowedClock) -> None:
    stream = io.StringIO()
    lines = ProgressLines("toy", 1, 12, stream)
    for step in range(1, 13):
        clock.pass_by(2)
        lines.update(step, {})
    lines.close()
    # Steps end at 2, 4, 6, ... s; lines at 2, 8, 14, 20 and at the end.
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["1/12", "4/12", "7/12", "10/12", "12/12"]


def test_seconds_a_step_and_the_time_left_count_the_steps_of_this_process(clock: BorrowedClock) -> None:
    stream = io.StringIO()
    lines = ProgressLines("toy", 11, 20, stream)  # resumed behind step 10
    clock.pass_by(30)
    lines.update(12, {"reward/mean": 0.25, "tokens_per_second": 20500.4})
    # Two steps in 30 s, and eight of the twenty are left.
    assert stream.getvalue() == "toy  step 12/20  reward 0.250  tokens/s 20,500  15.00 s/step  2m00s left\n"


def test_a_line_is_written_through(clock: BorrowedClock) -> None:
    """A log that is followed shows a step when it ends, not when a buffer is full."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(raw, 1 << 16))  # type: ignore[type-var]
    ProgressLines("toy", 1, 2, stream).update(1, {})
    assert raw.getvalue().startswith(b"toy  step 1/2")


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, legacy_windows=False)


def test_a_terminal_gets_a_bar_and_a_file_gets_lines() -> None:
    bar = build_progress("toy", 1, 3, console(terminal=True))
    assert isinstance(bar, ProgressBar)
    bar.close()
    assert isinstance(build_progress("toy", 1, 3, console(terminal=False)), ProgressLines)


def test_a_bar_shows_what_a_line_would_from_where_the_run_goes_on() -> None:
    shown = console(terminal=True)
    bar = ProgressBar("toy", 3, 4, shown)
    bar.update(3, {"reward/mean": 0.5, "eval/words/accuracy": 0.75})
    bar.close()
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "2/4" in text.partition("3/4")[0]
    assert "held-out accuracy" in text
    assert "0.750" in text
