"""Command lines with a verb: each calls its function with its arguments, and its help is the function's own."""

from __future__ import annotations

from typing import Any

import pytest

from troupe.config.verbs import verb_parser


def add(numbers: list[int]) -> int:
    """Add numbers."""
    return sum(numbers)


def greet(name: str, loud: bool) -> str:
    """Greet somebody."""
    return f"hello {name}".upper() if loud else f"hello {name}"


VERBS: dict[str, Any] = {
    "add": (add, {"numbers": {"nargs": "*", "type": int, "help": "what is added"}}),
    "greet": (greet, {"name": {}, "--loud": {"action": "store_true"}}),
}


def call(*words: str) -> Any:
    given = vars(verb_parser("Two verbs.", VERBS).parse_args(words))
    return given.pop("call")(**given)


def test_a_verb_calls_its_function_with_its_own_arguments() -> None:
    assert call("add", "1", "2", "39") == 42
    assert call("add") == 0
    assert call("greet", "Ana") == "hello Ana"
    assert call("greet", "Ana", "--loud") == "HELLO ANA"


@pytest.mark.parametrize("words", [[], ["subtract", "1"], ["add", "one"], ["greet"], ["add", "--loud"]])
def test_a_verb_that_is_missing_or_has_wrong_arguments_ends_with_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(*words)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_help_lists_the_verbs_with_the_docstrings_of_their_functions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("--help")
    printed = capsys.readouterr().out
    assert "Two verbs." in printed
    assert "add|greet" in printed
    assert "Add numbers." in printed
    assert "Greet somebody." in printed
    with pytest.raises(SystemExit):
        call("add", "--help")
    assert "what is added" in capsys.readouterr().out
