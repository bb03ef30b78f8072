"""Whoever waits is told for what: by a line, and by status.json."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

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
