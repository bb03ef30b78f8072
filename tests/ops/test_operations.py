"""docs/operations.md quotes messages that exist: each stands in the source, its dots where the source puts values."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.test_layering import source_files

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
VALUE = "\0"
"""Stands for what an f-string puts in."""


def quoted(page: str) -> list[str]:
    """The first cells of the tables of messages, without their quotes."""
    told = page.partition("## What it says, and what to do")[2]
    cells = [line.split(" | ")[0].removeprefix("| ") for line in told.splitlines() if line.startswith("| `")]
    return [re.sub(r"^(`+) ?(.*?) ?\1$", r"\2", cell) for cell in cells]


def texts(source: str) -> list[str]:
    """Every text of a file as one string each, also where it is written in several parts."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else VALUE for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def says(text: str, message: str) -> bool:
    """Whether the parts of a quoted message stand in the text in their order."""
    at = 0
    for part in message.split("..."):
        found = text.find(part.strip(), at)
        if found < 0:
            return False
        at = found + len(part.strip())
    return True


@pytest.fixture(scope="module")
def source() -> list[str]:
    files = [ROOT / file for file in source_files()]
    return [text for file in files for text in texts(file.read_text())]


def test_every_message_of_the_page_is_one_of_ours(source: list[str]) -> None:
    messages = quoted(PAGE)
    assert len(messages) > 30
    missing = [message for message in messages if not any(says(text, message) for text in source)]
    assert missing == []


def test_a_message_that_changed_is_found() -> None:
    ours = texts('raise ValueError(f"{path} is full: {size:.1f} GiB; " "free some")')
    assert any(says(text, "... is full: ... GiB; free some") for text in ours)
    assert not any(says(text, "... is empty: ... GiB") for text in ours)
    assert not any(says(text, "GiB ... is full") for text in ours)


def test_commands_of_the_page_name_files_that_exist() -> None:
    named = set(re.findall(r"\b(?:jobs|configs|kuberay)/[\w/.-]+\.(?:py|yaml)", PAGE))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    links = set(re.findall(r"\]\(([\w/]+\.md)\)", PAGE))
    assert [link for link in sorted(links) if not (ROOT / "docs" / link).is_file()] == []
