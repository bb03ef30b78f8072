"""A child process whose console goes live to ours and into a log, and which never outlives us.

On a terminal the child gets a terminal of its own, so that its progress bars work; the log gets lines. Signals reach
the child exactly once, whether they were sent to us alone or, as by Ctrl-C, to everything in the terminal.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import psutil

TAIL_LINES = 20
GRACE_S = 2.0
"""Seconds that processes which a child left behind get to end by themselves, and again after SIGTERM."""
TICK_S = 0.2
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
"""Sequences that move a terminal's cursor or colour its text."""
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: not safe between fork and exec
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a child."""

    status: int
    """Its exit status; minus the signal's number when a signal killed it."""
    tail: list[str]
    """Its last lines that are not blank."""
    interrupted: bool
    """Whether SIGINT or SIGTERM reached us while it ran."""
    timed_out: bool
    """Whether it was ended because its time was over."""


def run_logged(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    directory: Path | None = None,
    timeout_s: float = math.inf,
) -> Ended:
    """Run `command` to its end, its output both on our standard output and appended to `log`.

    The first two SIGINT or SIGTERM are passed on (a job ends after its step, then at once), the third kills. After
    `timeout_s` it is ended.
    """
    deadline = time.monotonic() + timeout_s
    ours, theirs = pty.openpty() if sys.stdout.isatty() else os.pipe()
    with open(ours, "rb", buffering=0), open(log, "ab") as file:
        lines = LogLines(file)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**(os.environ if environment is None else environment), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C in a terminal would otherwise reach it twice
                preexec_fn=_die_with_parent,
            )
        finally:
            os.close(theirs)
        try:
            with _signals_passed_to(child) as received:
                for data in _output(child, ours, deadline):
                    lines.feed(data)
                    sys.stdout.flush()
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                status = child.wait()
        finally:
            _end_group(child)
            lines.close()
    late = time.monotonic() > deadline
    return Ended(status=status, tail=list(lines.tail), interrupted=bool(received), timed_out=late)


class LogLines:
    """A console's bytes as a log: no colours, and of a line that was drawn again and again the last state."""

    def __init__(self, file: BinaryIO) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._file = file
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *whole, rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._write(line)
        # A bar is one line for hours; its earlier states are not kept. Final \r may belong to the end of the line.
        self._rest = rest[max(rest.rstrip(b"\r").rfind(b"\r"), 0) :]
        self._file.flush()

    def close(self) -> None:
        if self._rest.strip():
            self._write(self._rest)

    def _write(self, line: bytes) -> None:
        shown = CONTROL.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2])
        self._file.write(shown + b"\n")
        if text := shown.decode("utf-8", errors="replace").rstrip():
            self.tail.append(text)


@contextlib.contextmanager
def _signals_passed_to(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM to the child while the block lasts; yields those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) <= 2:
            child.send_signal(number)
        else:
            _signal_group(child.pid, signal.SIGKILL)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _output(child: subprocess.Popen[bytes], ours: int, deadline: float) -> Iterator[bytes]:
    """Yield what the child writes until it has ended; of others that inherited its output, no more than a moment."""
    last_moment, asked = math.inf, False
    while time.monotonic() < last_moment:
        ended = child.poll() is not None
        if ended:
            last_moment = min(last_moment, time.monotonic() + GRACE_S)
        late_s = time.monotonic() - deadline
        if late_s > GRACE_S or (late_s > 0 and not asked):  # asked again, it would not even finish what it is doing
            _signal_group(child.pid, signal.SIGKILL if late_s > GRACE_S else signal.SIGTERM)
            asked = True
        if os.isatty(ours):
            termios.tcsetwinsize(ours, termios.tcgetwinsize(sys.stdout))
        ready, _, _ = select.select([ours], [], [], 0.0 if ended else TICK_S)
        data = _read(ours) if ready else b""
        if data:
            yield data
        elif ready or ended:
            return


def _read(ours: int) -> bytes:
    try:
        return os.read(ours, 1 << 16)
    except OSError:  # Linux raises when no process holds the other end of a terminal any more
        return b""


def end_with_us(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a process that kills `pids` when ours has ended, however it ended; kill it once they are gone."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -9 "$@"', "sh", *map(str, pids)],
        stdin=subprocess.PIPE,  # its end is ours
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _die_with_parent() -> None:
    """Have the kernel send SIGTERM when our process is killed; runs in the child before it becomes the command."""
    # A shell starts background commands with SIGINT ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Give what the child left behind in its group a moment to end by itself, then end it."""
    if child.poll() is None:  # we failed to wait for it
        _signal_group(child.pid, signal.SIGKILL)
        child.wait()
    for number in (0, signal.SIGTERM, signal.SIGKILL):  # the first signal does nothing
        left = [process for process in psutil.process_iter() if _lives_in_group(process, child.pid)]
        if not left:
            return
        _signal_group(child.pid, number)
        psutil.wait_procs(left, timeout=GRACE_S)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _lives_in_group(process: psutil.Process, group: int) -> bool:
    """Return whether the process is in the group; in containers the dead may stay uncollected, and do not count."""
    with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    return False
