"""How text becomes values: YAML without its surprises, and one line for what is no YAML."""

from __future__ import annotations

from typing import Any

import pytest

from troupe.config.yaml_text import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("3", 3),
        ("+3", 3),
        ("-0", 0),
        ("1_000_000", 1_000_000),
        ("3.", 3.0),
        (".5", 0.5),
        ("-1.5E-3", -0.0015),
        ("1e3", 1000.0),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("a: {b: [1, x, null]}", {"a": {"b": [1, "x", None]}}),
        ("'3'", "3"),
        ("true", True),
        ("# a comment", None),
        ("a: 1 # behind it", {"a": 1}),
        ("x#y", "x#y"),
    ],
)
def test_a_text_is_the_value_that_it_looks_like(text: str, value: Any) -> None:
    found = read_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text", ["12:30", "1:2:3", "0x10", "0b1", "0o7", "010", "1__0", "_1", "1_", "+", "1e", ".", "1.2.3"]
)
def test_what_is_a_number_in_no_other_language_is_text(text: str) -> None:
    assert read_yaml(text) == text


def test_not_a_number_is_one_of_a_kind() -> None:
    found = read_yaml(".nan")
    assert isinstance(found, float)
    assert found != found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1", "line 2, column 1"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: 1\na: 2", "duplicate key"),
        ("{a: 1}}", "line 1"),
        ("\tb: 1", "cannot start any token"),
        ("*nobody", "undefined alias"),
        ("!!python/object:os.system x", "could not determine a constructor"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("? [a]\n: 1", "unhashable key, line 1, column 3"),
    ],
)
def test_what_is_no_yaml_is_one_line_with_its_place(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        read_yaml(text)
    assert len(str(error.value).splitlines()) == 1


def test_an_alias_that_grows_without_bound_is_refused() -> None:
    """Nine lists, each of nine of the one before: 9 ** 9 items, were they written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(ValueError, match="expansion exceeds the configured limit"):
        read_yaml("\n".join(lines))
