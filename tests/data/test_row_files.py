"""Files as people have them are read, or refused with what they seem to be and where."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from troupe.data.lines import read_rows
from troupe.errors import DataError

ROWS = [{"prompt": "2+2?", "answer": "4"}, {"prompt": "Größe 😀?", "answer": "5"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def written(tmp_path: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("marked.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("packed.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("packed without its suffix", gzip.compress(LINES.encode(), mtime=0)),
        ("dos.jsonl", LINES.replace("\n", "\r\n")),
        ("old_mac.jsonl", LINES.replace("\n", "\r")),
        ("array.json", json.dumps(ROWS)),
        ("pretty_array.json", json.dumps(ROWS, indent=1)),
        ("pretty_objects.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("table.csv", "prompt,answer\n2+2?,4\nGröße 😀?,5\n"),
        ("table.tsv", "prompt\tanswer\n2+2?\t4\nGröße 😀?\t5\n"),
    ],
)
def test_the_same_rows_are_read_from_every_form_that_people_have(tmp_path: Path, name: str, content: str) -> None:
    assert [entry.row for entry in read_rows(written(tmp_path, content, name))] == ROWS


def test_parquet_is_read_and_a_value_that_pandas_lacks_is_null(tmp_path: Path) -> None:
    pd.DataFrame([*ROWS, {"prompt": "x"}]).assign(score=[0.5, float("nan"), 1.0]).to_parquet(tmp_path / "rows.parquet")
    rows = [entry.row for entry in read_rows(tmp_path / "rows.parquet")]
    assert rows[:2] == [{**ROWS[0], "score": 0.5}, {**ROWS[1], "score": None}]
    assert rows[2]["answer"] is None


def test_a_row_is_placed_by_the_line_that_it_begins_in_and_by_its_number_in_an_array(tmp_path: Path) -> None:
    pretty = written(tmp_path, '{\n "a": 1\n}\n\n{\n "a": 2\n}\n', "pretty.json")
    assert [(entry.number, entry.where) for entry in read_rows(pretty)] == [
        (1, f"{pretty} line 1"),
        (5, f"{pretty} line 5"),
    ]
    quoted = written(tmp_path, 'a,b\n"one\ntwo",x\nthree,y\n', "quoted.csv")
    assert [(entry.number, entry.row["a"]) for entry in read_rows(quoted)] == [(2, "one\ntwo"), (4, "three")]
    array = written(tmp_path, "[{}, {}]", "array.json")
    assert [entry.where for entry in read_rows(array)] == [f"{array} row 1", f"{array} row 2"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (LINES.encode("utf-16"), r"seems to be text in UTF-16.*convert it first: iconv -f UTF-16"),
        (LINES.encode("utf-16-le"), "seems to be text in UTF-16 or a binary file"),
        (LINES.encode("latin-1", "replace"), r"line 2: byte 0xf6 is no UTF-8.*iconv -f WINDOWS-1252"),
        (b"PK\x03\x04....", "seems to be a zip archive.*unzip"),
        (gzip.compress(LINES.encode(), mtime=0)[:-9], "cannot be read"),
        (b"PAR1....", "no parquet file that can be read"),
        ('{"a": 1}\n{"a": ' + "9" * 5000 + "}\n", "line 2: a number has too many digits.*in quotes"),
        ('{"a": 1}\n{"a": ' + "[" * 100_000 + "\n", "line 2: brackets are nested too deeply"),
        ('{"a": 1}\n{"a": "\\ud83d"}\n', r"line 2: field 'a' holds the character U\+D83D \(half of a surrogate pair\)"),
        ('{"a": 1}\n{"a": {"b": ["x\\u0000"]}}\n', r"line 2: field 'a' holds the character U\+0000 \(NUL\)"),
        ('{"a": 1}\n{"a": NaN}\n', "line 2: field 'a' is nan, which JSON does not have; write null"),
        ('{"a": 1}\n{"a": [-Infinity]}\n', "line 2: field 'a' is -inf"),
        ('[\n{"a": 1},\n{"a": }\n]\n', "line 3: not valid JSON"),
        ('[{"a": 1}, 2]', "row 2: expected a JSON object with fields, got '2'"),
        ('{\n"a": 1\n}\n{\n"a": \n}\n', "line 6: not valid JSON"),
        ("[]", "is empty"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place_and_the_remedy(
    tmp_path: Path, content: Any, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        read_rows(written(tmp_path, content))


def test_a_row_of_a_table_with_another_number_of_fields_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: it has not the 2 fields of the header"):
        read_rows(written(tmp_path, "a,b\n1,2\n3\n", "rows.csv"))
