"""JSON Lines that a person wrote: every mistake is an error that names file, line and field.

The data sets and `jobs/score.py` go through here; what the fields mean is theirs. Files that a run wrote itself
are `troupe.files`'s, which passes over what a killed writer left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from troupe.errors import DataError
from troupe.files import to_json, write_atomically

Row = dict[str, Any]


def read_rows(path: Path) -> list[tuple[int, Row]]:
    """Return (line number from 1, object) of every line that is not blank; an empty or missing file is an error."""
    if not path.is_file():
        raise DataError(f"there is no file {path}; name a JSONL file, one JSON object per line")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None
    rows = [(number, _row(path, number, line)) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise DataError(f"{path} is empty; it needs one JSON object per line")
    return rows


def _row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {number}: not valid JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(row, dict):
        raise DataError(f"{path} line {number}: expected a JSON object with fields, got {line.strip()[:40]!r}")
    return row


def field_of(row: Mapping[str, Any], name: str, where: str) -> Any:
    """Return the value of a field that must be there; `where` is the file and line, for the error."""
    if name not in row:
        raise DataError(f"{where}: field {name!r} is missing; the line has {', '.join(row) or 'no fields'}")
    return row[name]


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field as text: strings that are not blank, and numbers as they are written."""
    value = field_of(row, name, where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: field {name!r} must be a text that is not empty, got {value!r:.60}")
    return value


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write all rows as one file, atomically; directories are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows), is_data=True)
