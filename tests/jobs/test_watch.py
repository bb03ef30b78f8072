"""jobs/watch.py in a terminal and without one."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.fake_run import fake_run
from troupe.errors import DataError
from troupe.jobs.watch import main
from troupe.processes.sockets import all_listeners
from troupe.timeline import REQUEST_FILE, TIMELINE_FILE

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


def test_a_timeline_is_asked_for_and_where_it_will_be_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path, steps=2)
    before = {path.name for path in run.iterdir()}
    capsys.readouterr()
    main([str(run), "--timeline"])
    assert {path.name for path in run.iterdir()} - before == {REQUEST_FILE}
    assert capsys.readouterr().out == f"the run writes {run / TIMELINE_FILE} at the end of the step\n"


def test_where_there_is_no_run_those_that_are_there_are_named(tmp_path: Path) -> None:
    fake_run(tmp_path, name="mine", steps=1)
    with pytest.raises(DataError, match=r"/other does not exist; runs there: mine$"):
        main([str(tmp_path / "other")])
    with pytest.raises(DataError, match=r"has no config.yaml, so it is not a run directory; runs there: mine$"):
        main([str(tmp_path), "--once"])
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    with pytest.raises(DataError, match=r"/inside has no config.yaml"):
        main([str(tmp_path / "empty" / "inside"), "--web"])


def test_the_page_is_served_on_loopback_alone_until_ctrl_c(tmp_path: Path) -> None:
    fake_run(tmp_path, name="mine", steps=2)
    command = [sys.executable, "jobs/watch.py", str(tmp_path), "--web"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address, way = process.stdout.readline(), process.stdout.readline()
        url = address.split()[0]
        port = urllib.parse.urlsplit(url).port
        try:
            assert url == f"http://127.0.0.1:{port}/mine"
            assert f"ssh -L {port}:127.0.0.1:{port}" in way
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert b"mine" in answer.read()
            assert [each.address for each in all_listeners() if each.port == port] == ["127.0.0.1"]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
