"""Ctrl-C and SIGTERM: while steps run the first asks the run to end after its step, the second ends it at once.

Before the first step there is no step to finish, and one signal ends the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

NOTICE = b"\nstopping after this step; once more to stop at once\n"


INTERRUPTIONS = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of a job that Ctrl-C or SIGTERM ended: 130 and 143, as shells count."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with its number and a sentence about how to go on."""

    def __init__(self, number: int = signal.SIGINT, advice: str = "") -> None:
        super().__init__(advice)
        self.number = number

    @classmethod
    def by(cls, error: KeyboardInterrupt, advice: str = "") -> Interrupted:
        """Return the interruption that `error` is, with advice."""
        return cls(error.number if isinstance(error, cls) else signal.SIGINT, advice)

    @property
    def status(self) -> int:
        """The exit status that states it."""
        return 128 + self.number


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises `Interrupted`, as Ctrl-C raises KeyboardInterrupt, so that what was started is ended."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with keeping_sigterm():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, interrupt)
        yield


@contextlib.contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Give SIGTERM back to its handler: a library (ray.init) may take it inside the block."""
    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if mine and before is not None:
            signal.signal(signal.SIGTERM, before)


class StopSignals:
    """The handlers of SIGINT and SIGTERM while a run is open; only the main thread can have them."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.patient = False
        """Whether there is a step to finish."""
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take both signals, again where a library took one; the first handlers found are kept for `restore`."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            found = signal.signal(number, self._handle)
            if found != self._handle:
                self._previous.setdefault(number, found)

    def restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None or not self.patient:
            raise Interrupted(number)
        self.received = number
        # Not logging: the signal may have come while a log handler held its buffer.
        os.write(2, NOTICE)
