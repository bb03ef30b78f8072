"""What this process waits for, told while it waits: `with waiting("the engines start")`.

A thread looks every few seconds. On a terminal there is one live line; elsewhere a plain line after 5 s and then every
20 s; and whoever listens (a run, for status.json) is told every 5 s. Blocks nest: `step 0: evaluate: generator`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import rich
from rich.text import Text

from troupe.files import now
from troupe.processes.progress import duration

log = logging.getLogger(__name__)

TOLD_S = 5.0
"""Seconds after which a wait is told, and between two signs of life."""
LINE_S = 20.0
"""Seconds between two plain lines about one wait."""
Listener = Callable[[str | None, str | None], None]
"""Told what is waited for and since when (UTC); None: this process is alive and waits for nothing."""


class Waits:
    """The open waits of a process, the innermost last."""

    def __init__(self, *, told_s: float = TOLD_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._told_s, self._clock = told_s, clock
        self._open: list[tuple[str, float, str]] = []
        """What, since when by the monotonic clock, and by the calendar."""
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._status: Any = None
        self._line_at = 0.0

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Tell of `what` while the block lasts, if it lasts."""
        entry = (what, self._clock(), now())
        with self._lock:
            if not self._open:
                self._line_at = max(self._line_at, entry[1] + self._told_s)
            self._open.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="waiting", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._open.remove(entry)
                if not self._open:
                    self._clear()

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Tell `listener` every few seconds, from the thread of the heartbeat."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def tell(self) -> None:
        """Show what is waited for, and tell it to the listeners; the thread calls it."""
        with self._lock:
            what, since = None, None
            if self._open:
                what, since = ": ".join(dict.fromkeys(name for name, _, _ in self._open)), self._open[0][2]
                self._show(f"{what}, {duration(self._clock() - self._open[0][1])}")
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener(what, since)
            except Exception:
                log.debug("a listener of the heartbeat failed", exc_info=True)

    def _beat(self) -> None:
        while True:
            time.sleep(self._told_s)
            self.tell()

    def _show(self, text: str) -> None:
        console = rich.get_console()
        if console.is_terminal:
            if self._status is None:
                self._status = console.status("")
                self._status.start()
            self._status.update(Text(text, "dim"))
        elif self._clock() >= self._line_at:
            self._line_at = self._clock() + LINE_S
            print(f"waiting: {text}", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


WAITS = Waits()
waiting = WAITS.waiting
