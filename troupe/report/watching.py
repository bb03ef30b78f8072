"""Runs that another process writes: which there are, whether they changed, whether their process lives.

Nothing here writes into a run directory, and no lock is taken that a writer might want; `request_timeline` alone leaves
a file, which is what it is for.
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from pathlib import Path

from troupe.errors import DataError
from troupe.files import read_json, to_json
from troupe.timeline import REQUEST_FILE

WATCHED = (
    "config.yaml",
    "status.json",
    "metrics.jsonl",
    "rollouts.jsonl",
    "answers.jsonl",
    "events.jsonl",
    "timeline.json",
)


def runs_in(directory: Path) -> list[str]:
    """Return the names of the runs in a directory, the one that was written to last first."""
    found = [path.parent for path in directory.glob("*/config.yaml") if not path.parent.name.startswith(".")]
    return [path.name for path in sorted(found, key=last_change, reverse=True)]


def last_change(run: Path) -> float:
    """Return when a file of the run changed, in seconds since 1970."""
    return max((file.stat().st_mtime for name in WATCHED if (file := run / name).is_file()), default=0.0)


def signature(run: Path) -> str:
    """Return another text whenever a file of the run is another."""
    marks = []
    for name in WATCHED:
        try:
            found = (run / name).stat()
        except FileNotFoundError:
            continue
        marks.append(f"{found.st_mtime_ns:x}.{found.st_size:x}" if name != "status.json" else _status_mark(run / name))
    return "-".join([*marks, "gone" if writer_is_gone(run) else "there"])


def _status_mark(file: Path) -> str:
    """Return a mark of status.json without its time, which a run that waits writes every few seconds."""
    status = read_json(file)
    said = {key: value for key, value in status.items() if key != "updated"} if isinstance(status, dict) else None
    return f"{zlib.crc32(to_json(said).encode()):x}"


def writer_is_gone(run: Path) -> bool:
    """Return whether the process of the run has ended; False where another machine's holds the lock."""
    try:
        holder = json.loads((run.parent / f".{run.name}.lock").read_text())
        if holder["host"] != socket.gethostname():
            return False
        os.kill(holder["pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def require_run(run: Path) -> Path:
    """Return the run's directory; raise DataError with the runs that there are where it is none."""
    if (run / "config.yaml").is_file():
        return run
    around = runs_in(run) or runs_in(run.parent)
    known = f"; runs there: {', '.join(around[:6])}" if around else ""
    what = "has no config.yaml, so it is not a run directory" if run.exists() else "does not exist"
    raise DataError(f"{run} {what}{known}")


def request_timeline(run: Path) -> None:
    """Ask for the timeline of the step that is running; the run writes it at the step's end."""
    (run / REQUEST_FILE).touch()
