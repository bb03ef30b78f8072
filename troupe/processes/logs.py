"""The output of a run's processes in `runs/<name>/logs/`: one file a role and rank, small, without secrets.

Ray and vLLM write into files of their own, which go with the machine. A thread copies what is new in them every few
seconds; when a process dies its last lines are fetched at once. Processes of other machines are not copied.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from troupe.processes.deaths import is_worth_reading
from troupe.secrets import page_text

LOGS = "logs"
ENGINE_SUFFIX = ".engine"
"""Of the file beside a worker's stderr into which its engine's processes write."""
EVERY_S = 2.0
MAX_BYTES = 2**20
"""Size at which a log is moved to `<name>.1`, in the place of the one before it."""
LONGEST_READ = 4 * 2**20
"""Bytes of one file that are copied at a time; of a process that prints more in between, the newest."""


@dataclass(slots=True)
class _Source:
    path: Path
    position: int = 0
    rest: bytes = b""
    """The beginning of a line whose end is not written yet."""


@dataclass(slots=True)
class _Log:
    path: Path
    sources: list[_Source] = field(default_factory=list)


class ProcessLogs:
    """The copies of a run's process logs. Close it to stop copying."""

    def __init__(self, directory: Path) -> None:
        """Keep logs in `directory`, the run's."""
        self.directory = directory / LOGS
        self._logs: dict[str, _Log] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, name: str, *sources: Path) -> None:
        """Copy `sources`, which need not exist yet, into `<name>.log` from now on; a restarted process adds its own."""
        with self._lock:
            log = self._logs.setdefault(name, _Log(self.directory / f"{name}.log"))
            known = {source.path for source in log.sources}
            log.sources += [_Source(path) for path in sources if path not in known]
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._copy_on, name="process-logs", daemon=True)
                self._thread.start()

    def path(self, name: str) -> Path:
        """Return the path of the log `name`."""
        return self.directory / f"{name}.log"

    def copy(self, *, last: bool = False) -> None:
        """Copy what is new now, and at the `last` time also a line that has no end."""
        with self._lock:
            for log in self._logs.values():
                lines = [line for source in log.sources for line in _new_lines(source, last=last)]
                if lines:
                    _append(log.path, lines)

    def close(self) -> None:
        """Copy the last lines and stop; idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.copy(last=True)

    def _copy_on(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.copy()


def _new_lines(source: _Source, *, last: bool) -> list[str]:
    """Return what was added to a file since the last call, as whole lines unless it is the `last` call."""
    try:
        with open(source.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(source.position, size - LONGEST_READ))
            data = source.rest + file.read()
            source.position = file.tell()
    except OSError:
        return []
    whole, _, source.rest = (data, b"", b"") if last else data.rpartition(b"\n")
    return [line for line in whole.decode(errors="replace").split("\n") if is_worth_reading(line)]


def _append(path: Path, lines: list[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            file.write(page_text("\n".join(lines)) + "\n")
    except OSError:  # a full disk ends a run where its checkpoints are written, not here
        return
