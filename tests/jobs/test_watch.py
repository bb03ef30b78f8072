"""jobs/watch.py in a terminal and without one."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fake_run import fake_run
from troupe.jobs.watch import main

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_terminal_it_prints_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(fake_run(tmp_path, steps=2))])
    printed = capsys.readouterr().out
    assert "step 2 of 2" in printed
    assert "\x1b" not in printed


def test_in_a_terminal_it_stays_until_q_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = fake_run(tmp_path, steps=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    ours, theirs = pty.openpty()
    command = [sys.executable, "jobs/watch.py", str(run)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, env={**os.environ, "TERM": "xterm"})
    seen, deadline = b"", time.monotonic() + 120
    while b"step 2 of 2" not in seen and time.monotonic() < deadline:
        if select.select([ours], [], [], 1.0)[0]:
            seen += os.read(ours, 65536)
    assert process.poll() is None
    os.write(ours, b"q")
    assert process.wait(60) == 0
    os.close(ours)
    os.close(theirs)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
