"""Whoever waits is told for what: by a line, and by status.json."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.fake_run import BorrowedClock
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.files import read_json
from troupe.processes.waiting import Waits
from troupe.report.observers import open_run
from troupe.report.watching import signature


def test_a_wait_is_told_by_its_path_to_whoever_listens() -> None:
    clock = BorrowedClock()
    waits = Waits(told_s=3600, clock=clock)
    told: list[tuple[str | None, str | None]] = []
    with waits.listening(lambda what, since: told.append((what, since))):
        waits.tell()
        assert told == [(None, None)]
        with waits.waiting("evaluate"), waits.waiting("generator: its start"):
            for _ in range(12):
                clock.pass_by(5)
                waits.tell()
    assert {what for what, _ in told[1:]} == {"evaluate: generator: its start"}
    assert len({since for _, since in told[1:]}) == 1  # the same beginning at every beat
    waits.tell()
    assert len(told) == 13  # nobody listens any more


def test_plain_lines_come_after_five_seconds_and_then_every_twenty(capsys: pytest.CaptureFixture[str]) -> None:
    clock = BorrowedClock()
    waits = Waits(clock=clock)
    with waits.waiting("the engines"):
        for _ in range(12):
            clock.pass_by(5)
            waits.tell()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines == [f"waiting: the engines, {seconds}" for seconds in ("5s", "25s", "45s")]


def test_a_run_that_waits_says_so_in_its_status_and_the_live_page_is_not_built_anew_for_each_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits(told_s=3600)
    monkeypatch.setattr("troupe.runs.run.WAITS", waits)
    monkeypatch.setattr("troupe.runs.run.waiting", waits.waiting)
    config = load_config(GRPOConfig, [f"run.directory={tmp_path}", "run.name=toy"])
    with open_run(config) as run, run.timed("rollout"):
        waits.tell()
        status, mark = read_json(run.directory / "status.json"), signature(run.directory)
        assert (status["state"], status["waits_for"]) == ("running", "rollout")
        time.sleep(0.01)
        waits.tell()
        assert read_json(run.directory / "status.json")["updated"] > status["updated"]
        assert signature(run.directory) == mark
    run._status("running")  # a beat that comes late
    ended = read_json(run.directory / "status.json")
    assert (ended["state"], "waits_for" in ended) == ("finished", False)


def test_a_job_of_many_short_waits_prints_nothing_and_what_lasts_is_told_by_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = BorrowedClock()
    waits = Waits(told_s=3600, clock=clock)
    for _ in range(10):
        with waits.waiting("a step"):
            clock.pass_by(1800)
            waits.tell()
    assert capsys.readouterr().err == ""  # each is shorter than the hour after which it is told
    real = Waits(told_s=0.2)
    with real.waiting("the engines start"):
        deadline = time.monotonic() + 10
        while not (told := capsys.readouterr().err):
            assert time.monotonic() < deadline, "nobody tells"
            time.sleep(0.01)
    assert told == "waiting: the engines start, 0s\n"


def test_the_path_of_a_wait_names_each_part_once_and_ends_with_the_part(capsys: pytest.CaptureFixture[str]) -> None:
    clock = BorrowedClock()
    waits = Waits(told_s=3600, clock=clock)
    with waits.waiting("step 4"):
        clock.pass_by(3600)
        with waits.waiting("step 4"), waits.waiting("update"):
            waits.tell()
        clock.pass_by(60)
        waits.tell()
    waits.tell()
    assert capsys.readouterr().err.splitlines() == ["waiting: step 4: update, 1h00m", "waiting: step 4, 1h01m"]


def test_a_listener_that_fails_keeps_no_other_from_hearing() -> None:
    waits = Waits(told_s=3600)
    heard: list[str | None] = []

    def fail(what: str | None, since: str | None) -> None:
        raise OSError("no space left on device")

    with waits.listening(fail), waits.listening(lambda what, since: heard.append(what)), waits.waiting("x"):
        waits.tell()
    assert heard == ["x"]


def test_a_wait_that_fails_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    clock = BorrowedClock()
    waits = Waits(told_s=3600, clock=clock)
    with pytest.raises(ConnectionError), waits.waiting("the cluster"):
        raise ConnectionError
    clock.pass_by(7200)
    waits.tell()
    assert capsys.readouterr().err == ""


def test_a_terminal_has_one_line_that_goes_when_the_wait_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    monkeypatch.setattr("rich.get_console", lambda: console)
    clock = BorrowedClock()
    waits = Waits(told_s=3600, clock=clock)
    with waits.waiting("[bold]engines"):  # no markup
        clock.pass_by(65)
        waits.tell()
        waits.tell()
        assert waits._status is not None
    assert waits._status is None
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]engines, 1m05s" in shown
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back and the line is gone
