"""How docstrings read: functions begin with a verb, classes with a noun, in the field's words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_layering import source_files, source_of

NO_VERBS = frozenset(
    [
        "the",
        "a",
        "an",
        "what",
        "who",
        "whether",
        "how",
        "where",
        "when",
        "why",
        "this",
        "these",
        "everything",
        "all",
        "one",
        "each",
        "every",
        "no",
        "those",
        "for",
        "with",
        "as",
        "at",
        "in",
        "on",
        "of",
        "to",
        "from",
        "by",
        "if",
        "that",
        "which",
        "its",
        "it",
        "them",
        "some",
        "several",
        "two",
        "about",
        "only",
        "also",
        "both",
        "nothing",
        "none",
    ]
)
"""Words that do not begin an imperative; a function whose docstring begins with one describes a thing, not what it
does.
"""
NO_NOUNS = frozenset(["what", "who", "whether", "how", "where", "when", "why", "if", "that", "which"])
DIALECT = re.compile(r"\b(who|whoever|told|says|lies|everybody)\b", re.IGNORECASE)


def docstrings(source: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, str]]:
    """Every function and class that has a docstring, with it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def faults(source: str) -> list[str]:
    """What is wrong with the docstrings of a file."""
    found = []
    for node, text in docstrings(source):
        first = re.match(r"\W*(\w*)", text)[1].lower()
        where = f"line {node.lineno}, {node.name}:"
        if isinstance(node, ast.ClassDef):
            if first in NO_NOUNS:
                found.append(f"{where} a class begins with a noun, not {first!r}")
        elif not is_property(node) and (first in NO_VERBS or not text[0].isalpha()):
            found.append(f"{where} a function begins with a verb, not {text.split()[0]!r}")
        found += [f"{where} {word!r} is not a word of our docstrings" for word in DIALECT.findall(text)]
    return found


@pytest.mark.parametrize("file", source_files())
def test_docstrings_read_like_those_of_the_field(file: str) -> None:
    assert faults(source_of(file)) == []


def test_the_rules_find_what_they_forbid() -> None:
    source = '''
def a():
    """The sum."""

def b():
    """Return who is first."""

class C:
    """What is kept."""

    @property
    def d(self):
        """The sum."""

    def e(self):
        """Return the sum."""
'''
    assert [fault.split(":")[0] for fault in faults(source)] == ["line 2, a", "line 5, b", "line 8, C"]
