"""The file `.env`: what it may say, what is refused and that no message repeats a value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from troupe.environment import load_env_file, read_env_file
from troupe.errors import ConfigError

VALUE = "hunter2-hunter2"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / ".env"
    path.write_bytes(text.encode())
    return path


def test_the_usual_syntax_is_read(tmp_path: Path) -> None:
    text = """\ufeff# tokens

    PLAIN=abc   # a comment
    export EXPORTED = two words
    SINGLE='a "quote", a $HOME and a #'
    DOUBLE="line one\\nline two, a \\"quote\\", it's"
    EMPTY=
    HASH=ab#c
    LAST=1
    LAST=2
    """
    assert read_env_file(written(tmp_path, text)) == {
        "PLAIN": "abc",
        "EXPORTED": "two words",
        "SINGLE": 'a "quote", a $HOME and a #',
        "DOUBLE": 'line one\nline two, a "quote", it\'s',
        "EMPTY": "",
        "HASH": "ab#c",
        "LAST": "2",
    }


def test_a_key_of_several_lines_may_stand_in_quotes(tmp_path: Path) -> None:
    key = "-----BEGIN KEY-----\nMIIBVgIBADANBg\nkqhkiG9w==\nAB=\n-----END KEY-----"
    assert read_env_file(written(tmp_path, f'KEY="{key}"\r\nNEXT=1\r\n')) == {"KEY": key, "NEXT": "1"}


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        (f'\n\nA="{VALUE}\n', 3, "a quote is missing"),
        (f"OK=1\nA='{VALUE}", 2, "a quote is missing"),
        (f'A="{VALUE}\nB="{VALUE}"\n', 1, "a quote is missing"),
        (f'A="{VALUE}" {VALUE}\n', 1, "something follows the closing one"),
        (f'A="{VALUE}\nB={VALUE}"\n', 1, "swallows the next variable"),
        (f'A={VALUE}"\n', 1, "without quotes around it"),
        (f"# a token\n{VALUE}\n", 2, "there is no `=`"),
        (f"OK=1\r\n\r\nexport {VALUE}\r\n", 3, "there is no `=`"),
        (f"2A={VALUE}\n", 1, "the name must be"),
        (f"A-B={VALUE}\n", 1, "the name must be"),
        (f"={VALUE}\n", 1, "not a variable"),
        (f"MY TOKEN={VALUE}\n", 1, "not a variable"),
        (f"A={VALUE}\0\n", 1, "NUL"),
    ],
)
def test_a_fault_is_named_with_its_line_and_without_the_value(tmp_path: Path, text: str, line: int, rule: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match="^" + str(path)) as refusal:
        read_env_file(path)
    assert f" line {line}: " in str(refusal.value)
    assert rule in str(refusal.value)
    assert VALUE not in str(refusal.value)


def test_a_file_that_is_no_text_or_not_there_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_env_file(tmp_path / ".env")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_env_file(tmp_path / "absent.env")


def test_what_the_environment_sets_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "TROUPE_TEST_A=file\nTROUPE_TEST_B=file\n")
    monkeypatch.setenv("TROUPE_TEST_A", "environment")
    monkeypatch.setenv("TROUPE_TEST_B", "")
    monkeypatch.delenv("TROUPE_TEST_B")  # so that it is gone again after the test
    assert load_env_file(path) == ["TROUPE_TEST_B"]
    assert (os.environ["TROUPE_TEST_A"], os.environ["TROUPE_TEST_B"]) == ("environment", "file")
    assert load_env_file(tmp_path / "absent.env") == []
