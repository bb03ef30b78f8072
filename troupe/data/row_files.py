"""Files of rows as people have them: JSON Lines, one JSON array, pretty-printed JSON, CSV, parquet, each also packed.

What a file is, its first bytes and its name say; another encoding or archive is named with the remedy. What the rows
mean is left to the data sets, and what each mistake is called to `troupe.data.lines`, which is the door to this file.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from troupe.errors import DataError

Row = dict[str, Any]


class Entry(NamedTuple):
    """A row and its place: `Entry(3, "train.jsonl line 3", {"prompt": "2+2?"})`."""

    number: int
    """Line that it begins in, from 1; of an array or a table its number, from 1."""
    where: str
    row: Row


FOREIGN = {
    b"\xff\xfe": ("text in UTF-16", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("text in UTF-16", "iconv -f UTF-16 -t UTF-8"),
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"BZh": ("packed by bzip2", "bunzip2"),
    b"\xfd7zXZ": ("packed by xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unzstd"),
    b"ARROW1": ("an Arrow file", "data.type=hub data.path=<the directory that save_to_disk wrote>"),
    b"version https://git-lfs": ("a pointer of Git LFS and not the data", "git lfs pull"),
}
"""How a file begins that is not read here -> what it seems to be, and what makes it readable."""
GZIP, PARQUET, UTF8_MARK = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
TABLES = {".csv": ",", ".tsv": "\t"}
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
NOT_BLANK = re.compile(r"\S")
SUSPECT = ("\\u", "NaN", "Infinity")
"""Only a line with one of these can hold what `check_values` refuses, since no text in UTF-8 has it bare."""


def read_entries(path: Path) -> list[Entry]:
    """Return every row of a file with its place, in order; blank lines are passed over."""
    content = _unpacked(path)
    if content.startswith(PARQUET):
        return list(_table(path, content))
    text = _text(path, content)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in TABLES:
        return list(_separated(path, text, TABLES[suffix]))
    first = next((line for line in text.split("\n") if line.strip()), "").strip()
    if first.startswith("["):
        return list(_array(path, text))
    # A first line that opens an object and does not close it: one object over several lines.
    return list(_objects(path, text) if first.startswith("{") and not first.endswith("}") else _lines(path, text))


def _unpacked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    for beginning, (kind, remedy) in FOREIGN.items():
        if content.startswith(beginning):
            raise DataError(f"{path} seems to be {kind}, and rows are read as UTF-8 text; convert it first: {remedy}")
    return content


def _text(path: Path, content: bytes) -> str:
    """Return the file's text, without a byte order mark and with line ends of one kind (a bare CR is one too)."""
    if b"\0" in content[:200]:
        raise DataError(
            f"{path} seems to be text in UTF-16 or a binary file (it holds NUL bytes), and rows are read as UTF-8 "
            "text; convert it first: iconv -f UTF-16 -t UTF-8"
        )
    try:
        text = content.removeprefix(UTF8_MARK).decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} line {line}: byte 0x{content[error.start]:02x} is no UTF-8; the file seems to be of an older "
            "encoding: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


# -- JSON ----------------------------------------------------------------------------------------------------------


def _lines(path: Path, text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield Entry(number, where, _row(_decoded(line, path, number), line, where))


def _array(path: Path, text: str) -> Iterator[Entry]:
    rows = _decoded(text, path, 1)
    for number, row in enumerate(rows, start=1):
        where = f"{path} row {number}"
        yield Entry(number, where, _row(row, text if len(rows) == 1 else json.dumps(row), where))


def _objects(path: Path, text: str) -> Iterator[Entry]:
    """Yield objects that follow each other, each over as many lines as it likes."""
    decoder, place, line = json.JSONDecoder(), 0, 1
    while found := NOT_BLANK.search(text, place):
        line += text.count("\n", place, found.start())
        try:
            row, place = decoder.raw_decode(text, found.start())
        except RecursionError as error:
            raise _mistake(error, path, line) from None
        except ValueError as error:
            raise _mistake(error, path, 1) from None  # it counts the lines of the whole text
        where = f"{path} line {line}"
        yield Entry(line, where, _row(row, text[found.start() : place], where))
        line += text.count("\n", found.start(), place)


def _decoded(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _mistake(error, path, line) from None


def _mistake(error: Exception, path: Path, line: int) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        reason = f"not valid JSON ({error.msg} at column {error.colno})"
        return DataError(f"{path} line {line + error.lineno - 1}: {reason}")
    if isinstance(error, RecursionError):
        return DataError(f"{path} line {line}: brackets are nested too deeply to be read; flatten that value")
    return DataError(f"{path} line {line}: a number has too many digits to be read; write it as a text, in quotes")


def _row(row: Any, text: str, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object with fields, got {str(row)[:40]!r}")
    if any(sign in text for sign in SUSPECT):
        for name, value in row.items():
            check_value(value, name, where)
    return row


def check_value(value: Any, name: str, where: str) -> None:
    """Raise DataError for NaN, an infinite number, a lone surrogate or NUL, however deep it stands in a field."""
    if isinstance(value, str) and (found := UNWRITABLE.search(value)):
        kind = "NUL" if found[0] == "\0" else "half of a surrogate pair"
        raise DataError(
            f"{where}: field {name!r} holds the character U+{ord(found[0]):04X} ({kind}), which no text in UTF-8 "
            "can be sent with; remove it"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: field {name!r} is {value}, which JSON does not have; write null or a number")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        check_value(inner, name, where)


# -- tables --------------------------------------------------------------------------------------------------------


def _table(path: Path, content: bytes) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is no parquet file that can be read: {str(error).splitlines()[0]}") from None
    for number, row in enumerate(rows, start=1):
        yield Entry(number, where := f"{path} row {number}", table_row(row, where))


def table_row(row: Row, where: str) -> Row:
    """Return a row of a table, in which NaN is what pandas writes where a value is missing."""
    row = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
    for name, value in row.items():
        check_value(value, name, where)
    return row


def _separated(path: Path, text: str, delimiter: str) -> Iterator[Entry]:
    """Yield the rows of a CSV file below its header, every value as the text that stands there."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 2
    try:
        for row in reader:
            where = f"{path} line {number}"
            if None in row or None in row.values():
                raise DataError(f"{where}: it has not the {len(reader.fieldnames or ())} fields of the header")
            yield Entry(number, where, row)
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} line {number}: not valid CSV ({error})") from None
