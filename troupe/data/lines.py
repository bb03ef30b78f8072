"""Rows that a person wrote: every mistake is an error that names file, line and field.

The data sets and `jobs/score.py` go through here; what the fields mean is theirs, how files are read is
`troupe.data.row_files`'s. Files that a run wrote itself are `troupe.files`'s, which passes over what a killed writer
left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from troupe.data.row_files import Entry, Row, read_entries
from troupe.errors import DataError
from troupe.files import to_json, write_atomically

__all__ = ["Entry", "Row", "field_of", "read_rows", "text_of", "write_rows"]


def read_rows(path: Path) -> list[Entry]:
    """Return every row of a file with its place; an empty or missing file is an error."""
    if not path.is_file():
        raise DataError(f"there is no file {path}; name a file of rows, such as JSONL: one JSON object per line")
    entries = read_entries(path)
    if not entries:
        raise DataError(f"{path} is empty; it needs one JSON object per line")
    return entries


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
