"""Ctrl-C and SIGTERM: while steps run the first asks the run to end after its step, the second ends it at once.

Before the first step there is no step to finish, and one signal ends the run.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

NOTICE = b"\nstopping after this step; once more to stop at once\n"


class StopSignals:
    """The handlers of SIGINT and SIGTERM while a run is open; only the main thread can have them."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.patient = False
        """Whether there is a step to finish."""
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take both signals; also when a library took one in between. The first handlers found are kept for `restore`."""
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
            raise KeyboardInterrupt
        self.received = number
        # Not logging: the signal may have come while a log handler held its buffer.
        os.write(2, NOTICE)
