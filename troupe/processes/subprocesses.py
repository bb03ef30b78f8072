"""A child process whose console goes live to ours and into a log, and which never outlives us.

On a terminal the child gets a terminal of its own, so that its progress bars work; the log gets lines. Signals reach
the child exactly once, whether they were sent to us alone or, as by Ctrl-C, to everything in the terminal.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import psutil

TAIL_LINES = 20
GRACE_S = 2.0
"""Seconds that processes which a child left behind get to end by themselves, and again after SIGTERM."""
TICK_S = 0.2
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
"""What moves a terminal's cursor or colours it."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a child ended."""

    status: int
    """Its exit status; minus the signal's number when a signal killed it."""
    tail: list[str]
    """Its last lines that are not blank."""
    interrupted: bool
    """Whether we were asked to stop while it ran."""
    timed_out: bool
    """Whether it was ended because its time was over."""


def run_logged(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    directory: Path | None = None,
    timeout_s: float | None = None,
) -> Ended:
    """Run `command` to its end, its output both on our standard output and appended to `log`.

    The first two SIGINT or SIGTERM are passed on (a job ends after its step, then at once), the third kills. After
    `timeout_s` it is ended.
    """
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    signals = PassedOn()
    with open(log, "ab") as file, signals, _output_pair() as (ours, theirs, copy_size):
        lines = LogLines(file)
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**(os.environ if environment is None else environment), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C in a terminal would otherwise reach it twice
            preexec_fn=_die_with_parent(),
        )
        os.close(theirs)
        signals.child = child

        def tick() -> None:
            copy_size()
            if time.monotonic() > deadline:
                hard = time.monotonic() > deadline + GRACE_S
                _signal_group(child.pid, signal.SIGKILL if hard else signal.SIGTERM)

        try:
            for data in _output(child, ours, tick):
                lines.feed(data)
                _show(data)
            status = child.wait()
        finally:
            _end_group(child)
            lines.close()
    return Ended(
        status=status, tail=list(lines.tail), interrupted=bool(signals.received), timed_out=time.monotonic() > deadline
    )


class PassedOn:
    """SIGINT and SIGTERM for us, handed to the child while the block lasts."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PassedOn:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def child(self) -> subprocess.Popen[bytes] | None:
        return self._child

    @child.setter
    def child(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        for number in self.received:  # came while it was being started
            child.send_signal(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if self._child is None:
            return
        if len(self.received) <= 2:
            self._child.send_signal(number)
        else:
            _signal_group(self._child.pid, signal.SIGKILL)


class LogLines:
    """Turns a console's bytes into a log: no colours, and of a line that was drawn again and again the last state."""

    def __init__(self, file: BinaryIO) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._file = file
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *whole, rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._write(line)
        # A bar is one line for hours; its earlier states are not kept. A final \r may be the half of a \r\n.
        self._rest = rest[max(rest.rfind(b"\r", 0, -1), 0) :]
        self._file.flush()

    def close(self) -> None:
        if self._rest.strip():
            self._write(self._rest)
        self._file.flush()

    def _write(self, line: bytes) -> None:
        shown = CONTROL.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2])
        self._file.write(shown + b"\n")
        text = shown.decode("utf-8", errors="replace").rstrip()
        if text:
            self.tail.append(text)


@contextlib.contextmanager
def _output_pair() -> Iterator[tuple[int, int, Callable[[], None]]]:
    """(our end, the child's end, what keeps the sizes equal): a terminal where we have one, else a pipe."""
    on_terminal = sys.stdout.isatty()
    ours, theirs = pty.openpty() if on_terminal else os.pipe()

    def copy_size() -> None:
        if on_terminal:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(ours, termios.TIOCSWINSZ, size)

    try:
        copy_size()
        yield ours, theirs, copy_size
    finally:
        os.close(ours)


def _output(child: subprocess.Popen[bytes], ours: int, tick: Callable[[], None]) -> Iterator[bytes]:
    """What the child writes, until it has ended; of others that inherited its output, no more than a moment."""
    last_moment = float("inf")
    while time.monotonic() < last_moment:
        ended = child.poll() is not None
        if ended and last_moment == float("inf"):
            last_moment = time.monotonic() + GRACE_S
        ready, _, _ = select.select([ours], [], [], 0.0 if ended else TICK_S)
        tick()
        if ready:
            data = _read(ours)
            if not data:
                return
            yield data
        elif ended:
            return


def _read(ours: int) -> bytes:
    try:
        return os.read(ours, 1 << 16)
    except OSError:  # how Linux says that nobody holds the other end of a terminal any more
        return b""


def _show(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _die_with_parent() -> Callable[[], None]:
    """Run in the child before it becomes the command: SIGTERM when its parent is killed, Ctrl-C as usual."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        # A shell starts background commands with SIGINT ignored, and that is inherited.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return prepare


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Wait for what the child left behind in its group, then end it; also a child that we failed to wait for."""
    if child.poll() is None:
        _signal_group(child.pid, signal.SIGKILL)
        child.wait()
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_S
        while _alive_in_group(child.pid):
            if time.monotonic() > deadline:
                _signal_group(child.pid, number)
                break
            time.sleep(TICK_S / 2)
        else:
            return


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _alive_in_group(group: int) -> bool:
    """Whether a process of the group lives; in containers nobody may collect its dead, which count no more."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
