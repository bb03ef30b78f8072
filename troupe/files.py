"""How the run directory's files are written and read: whole files atomically, JSON Lines by appending.

A reader sees the old file or the new one, never half of either; of a JSON Lines file whose writer was killed it
sees every whole line. What the lines mean is the business of `troupe.runs.run` and `troupe.report.report`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from troupe.disk import when_there_is_room
from troupe.secrets import page_text


def now() -> str:
    """Return the time in UTC, ISO 8601 with milliseconds, as every file of a run directory writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_atomically(path: Path, text: str, *, is_data: bool = False, waits: bool = True) -> None:
    """Replace `path` by `text` without its secrets and terminal escapes; survives a crash of the process and of the
    machine.

    `is_data`: what is trained on is written as it is. `waits`: for room on a full disk, where the run does.
    """

    def write() -> None:
        with _replacing(path) as file:
            file.write(text if is_data else page_text(text))

    if waits:
        when_there_is_room(write, path.name, path)
    else:
        write()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Open a file that replaces `path` at the end of the block, and nothing when the block raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text; numbers that JSON cannot write (NaN, infinities) become null, unknown objects their `str`."""
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None where there is none, or what is there is not whole JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError):
        return None


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def iter_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON Lines file in order; a line that a killed writer left unfinished is passed over."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        yield from records(file)


def records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the records among the lines of a JSON Lines file; what is none is passed over."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def last_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the last `count` records of a JSON Lines file, of which no more than the end is read."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        reach = 1 << 16
        while True:
            file.seek(max(0, size - reach))
            end = file.read(reach)
            if reach >= size or end.count(b"\n") > count:
                return list(records(end.split(b"\n")))[-count:]
            reach *= 2


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return all records of a JSON Lines file; none where there is no file."""
    return list(iter_lines(path))


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the records that are not `wanted`, atomically."""

    def write() -> None:
        with _replacing(path) as file:
            file.writelines(to_json(record) + "\n" for record in iter_lines(path) if wanted(record))

    if path.is_file():
        when_there_is_room(write, path.name, path)


class JsonLines:
    """An append-only JSON Lines file; records of any thread reach the file whole and without secrets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()  # what waited for room is an event, which may be of this very file

    def append(self, *records: Mapping[str, Any]) -> None:
        data = page_text("".join(to_json(record) + "\n" for record in records)).encode("utf-8")
        with self._lock:
            when_there_is_room(lambda: self._append(data), self.path.name, self.path)

    def _append(self, data: bytes) -> None:
        """Append all of `data`, or nothing."""
        with open(self.path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                _write_all(file, b"\n" + data if _unfinished(file) else data)
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise


def _write_all(file: Any, data: bytes) -> None:
    """Write `data` to an unbuffered file, which a disk with little room takes in parts."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _unfinished(file: Any) -> bool:
    """Return whether the file's last line lacks its end, because its writer was killed."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
