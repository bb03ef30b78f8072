"""A child's console is ours and a log's, signals reach it once, and nothing of it outlives us."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from troupe.processes.subprocesses import TAIL_LINES, LogLines, run_logged


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def gone(pid: int, within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    return True


# -- a console as a log --------------------------------------------------------------------------------------------


def logged(*pieces: bytes) -> tuple[bytes, list[str]]:
    """What the log holds of a console's output that arrived in these pieces, and its last lines."""
    file = io.BytesIO()
    lines = LogLines(file)
    for piece in pieces:
        lines.feed(piece)
    lines.close()
    return file.getvalue(), list(lines.tail)


CONSOLE = (
    b"plain\r\n"
    b"step 1\rstep 2\rstep 3\n"  # a bar: its last state stays
    b"\x1b[1mbold\x1b[0m and \x1b]8;;http://x\x07a link\x1b]8;;\x07\n"
    b"twice\r\r\n"  # what a program that writes \r\n sends to a terminal
    b"\n"
    b"\x1b[2K\rlast, without an end"
)


def test_a_log_has_no_colours_and_of_a_line_drawn_again_the_last_state() -> None:
    text, tail = logged(CONSOLE)
    assert text.decode().split("\n") == [
        "plain",
        "step 3",
        "bold and a link",
        "twice",
        "",
        "last, without an end",
        "",
    ]
    assert tail == ["plain", "step 3", "bold and a link", "twice", "last, without an end"]


def test_where_the_pieces_of_the_output_end_changes_nothing() -> None:
    whole = logged(CONSOLE)
    for cut in range(len(CONSOLE)):
        assert logged(CONSOLE[:cut], CONSOLE[cut:]) == whole, CONSOLE[:cut]
    assert logged(*(bytes([each]) for each in CONSOLE)) == whole


def test_a_bar_that_is_drawn_for_hours_takes_no_memory_and_one_line() -> None:
    file = io.BytesIO()
    lines = LogLines(file)
    for step in range(10_000):
        lines.feed(b"\r%d of 10000 steps are done" % step)
    assert len(lines._rest) < 100
    lines.close()
    assert file.getvalue() == b"9999 of 10000 steps are done\n"


def test_the_last_lines_are_bounded_and_bytes_that_are_no_text_do_no_harm() -> None:
    text, tail = logged(*(b"line %d\n" % number for number in range(100)), b"\xff\xfe half a word\n")
    assert len(tail) == TAIL_LINES
    assert tail[-2:] == ["line 99", "\ufffd\ufffd half a word"]
    assert text.endswith(b"\xff\xfe half a word\n")  # the log keeps what was written


# -- a child -------------------------------------------------------------------------------------------------------


def test_output_and_errors_are_on_our_console_and_behind_what_the_log_held(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = tmp_path / "child.log"
    log.write_text("of an earlier run\n")
    ended = run_logged(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), log)
    assert (ended.status, ended.tail, ended.interrupted, ended.timed_out) == (3, ["out", "err"], False, False)
    assert log.read_text() == "of an earlier run\nout\nerr\n"
    assert capfdbinary.readouterr().out == b"out\nerr\n"


def test_a_signal_that_ended_the_child_is_its_status(tmp_path: Path) -> None:
    ended = run_logged(python("import os; os.abort()"), tmp_path / "log")
    assert ended.status == -signal.SIGABRT


def test_a_child_has_its_own_directory_and_environment_and_nothing_to_read(tmp_path: Path) -> None:
    source = "import os, sys; print(os.getcwd(), os.environ.get('HOME'), os.environ['GIVEN'], repr(sys.stdin.read()))"
    (tmp_path / "here").mkdir()
    ended = run_logged(python(source), tmp_path / "log", {"GIVEN": "yes"}, directory=tmp_path / "here")
    assert ended.tail == [f"{tmp_path / 'here'} None yes ''"]


def test_a_program_that_is_not_there_is_an_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    with pytest.raises(FileNotFoundError):
        run_logged([str(tmp_path / "nothing")], tmp_path / "log")
    assert psutil.Process().num_fds() <= before


def test_a_child_whose_time_is_over_is_asked_once_to_end(tmp_path: Path) -> None:
    script = "trap 'echo saved; exit 5' TERM; sleep 600 & echo begun; wait"
    ended = run_logged(["sh", "-c", script], tmp_path / "log", timeout_s=1.0)
    assert (ended.timed_out, ended.status, ended.tail) == (True, 5, ["begun", "saved"])
    assert not ended.interrupted


# -- signals -------------------------------------------------------------------------------------------------------

PARENT = """
import sys
from pathlib import Path
from troupe.processes.subprocesses import run_logged

ended = run_logged([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]))
print("ended", ended.status, ended.interrupted, flush=True)
"""
STUBBORN = """
import os, signal, time
def note(number, frame):
    print("received", signal.Signals(number).name, flush=True)
signal.signal(signal.SIGINT, note)
signal.signal(signal.SIGTERM, note)
print("child", os.getpid(), flush=True)
while True:
    time.sleep(600)
"""


def started(start_python, source: str, log: Path) -> tuple[subprocess.Popen[str], int]:
    """A parent that runs `source` by `run_logged`, once the child runs, and the child's process id."""
    parent = start_python(PARENT, source, str(log))
    word, pid = parent.stdout.readline().split()
    assert word == "child"
    return parent, int(pid)


def test_two_signals_are_passed_on_as_they_are_and_the_third_kills(start_python, tmp_path: Path) -> None:
    parent, _ = started(start_python, STUBBORN, tmp_path / "log")
    for number in (signal.SIGINT, signal.SIGTERM):
        parent.send_signal(number)
        assert parent.stdout.readline() == f"received {number.name}\n"  # once
    parent.send_signal(signal.SIGINT)
    assert parent.stdout.readline() == f"ended {-signal.SIGKILL} True\n"
    assert (tmp_path / "log").read_text().splitlines()[1:] == ["received SIGINT", "received SIGTERM"]


def test_ctrl_c_reaches_a_child_whose_parent_was_started_with_it_ignored(tmp_path: Path) -> None:
    """As a shell starts what runs in its background."""
    source = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from troupe.processes.subprocesses import run_logged\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "shown = 'import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)'\n"
        f"run_logged([sys.executable, '-c', shown], Path({str(tmp_path / 'log')!r}))"
    )
    done = subprocess.run(python(source), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def test_our_handlers_are_back_when_the_child_has_ended(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_logged(python("pass"), tmp_path / "log")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a child of its parent's death on Linux alone")
def test_a_child_whose_parent_is_killed_is_asked_to_end(start_python, tmp_path: Path) -> None:
    source = (
        "import os, pathlib, signal, sys, time\n"
        f"save = lambda *_: (pathlib.Path({str(tmp_path / 'saved')!r}).touch(), sys.exit())\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('child', os.getpid(), flush=True)\ntime.sleep(600)"
    )
    parent, child = started(start_python, source, tmp_path / "log")
    parent.kill()
    assert gone(child)
    assert (tmp_path / "saved").exists()
