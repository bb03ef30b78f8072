"""What a docstring says of its parameters and its result, one fact each: name and one sentence.

Read are the forms of NumPy (`axis : int`, then indented text), Google (`Args:`, then `axis: text`) and Sphinx
(`:param axis: text`). Only facts of a readable length count. `troupe.data.documents` asks about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from troupe.data.near_duplicates import plain

HEADER = re.compile(
    r"^(?P<indent>[ \t]*)(?:Args|Arguments|Parameters|Attributes|Inputs|Returns?)[ \t]*:[ \t]*$", re.MULTILINE
)
NUMPY = re.compile(
    r"^(?P<indent>[ \t]*)(?P<name>\w+) : [^\n]*\n(?P<text>(?:(?P=indent)[ \t]+\S[^\n]*(?:\n|\Z))+)", re.MULTILINE
)
GOOGLE = re.compile(
    r"^(?P<indent>[ \t]+)(?P<name>\w+)[ \t]*(?:\([^()\n]*\))?:[ \t]+(?P<text>\S[^\n]*(?:\n(?P=indent)[ \t]+\S[^\n]*)*)",
    re.MULTILINE,
)
SPHINX = re.compile(
    r"^[ \t]*:(?:param|arg|return)s?(?: \w+)*?(?: (?P<name>\w+))?:[ \t]*(?P<text>\S[^\n]*(?:\n[ \t]+\S[^\n]*)*)",
    re.MULTILINE,
)
SENTENCE_END = re.compile(r"[.;](?:\s|$)|\n\n")
RESULT = "Returns"
"""The name of what a function returns."""
MIN_WORDS, MAX_CHARS = 4, 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Example: `Fact(name="axis", text="Axis along which the means are computed")`."""

    name: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.name}: {self.text}."


def split_facts(text: str) -> tuple[str, list[Fact]]:
    """(the prose before the first fact, the facts in their order, each name once) of a docstring's text.

    >>> split_facts("Rows of zeros are skipped.\\n\\nArgs:\\n    path (str): where the table lies on disk.\\n    n: rows")
    ('Rows of zeros are skipped.', [Fact(name='path', text='where the table lies on disk')])
    """
    matches = sorted(_matches(text), key=lambda match: match.start())
    if not matches:
        return text, []
    facts: dict[str, Fact] = {}
    for match in matches:
        fact = _fact(match)
        if fact is not None:
            facts.setdefault(fact.name, fact)
    headers = [header.start() for header in HEADER.finditer(text)]
    prose = text[: min([matches[0].start(), *headers])]
    return re.sub(r"\n[^\n]*\n[-=~]{3,}\s*\Z", "\n", f"\n{prose}").strip(), list(facts.values())


def _matches(text: str) -> Iterator[re.Match[str]]:
    yield from NUMPY.finditer(text)
    yield from SPHINX.finditer(text)
    if HEADER.search(text):  # without a header, `word: text` is as likely an example or a note
        yield from GOOGLE.finditer(text, HEADER.search(text).start())  # type: ignore[union-attr]


def _fact(match: re.Match[str]) -> Fact | None:
    """The first sentence; None where it is too short to be asked about, too long to be kept, or no plain text."""
    text = SENTENCE_END.split(" ".join(match["text"].split()), maxsplit=1)[0].strip()
    words = plain(text).split()
    readable = text.isascii() and len(set(words)) >= MIN_WORDS and len(text) <= MAX_CHARS
    return Fact(name=match["name"] or RESULT, text=text) if readable and not text.endswith(":") else None
