"""Documents with questions and answers without a download: short texts from the docstrings of the installed packages.

A document is a docstring's summary, the beginning of its prose, and a line for each parameter that it explains; the
questions ask what the parameters are. The authors of a held-out document wrote none that was trained on. Its form is
that of `repliqa`, its size that of a model which two cores train in minutes. Facts are read in the forms of NumPy
(`axis : int`, then indented text), Google (`Args:`, then `axis: text`) and Sphinx (`:param axis: text`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from troupe.config.made_data import DocumentsConfig
from troupe.data.dataset import DataSet, conversation, shorten
from troupe.data.docstring_scan import Pair
from troupe.data.docstrings import CACHE, short_pairs, split_by_package
from troupe.data.near_duplicates import plain
from troupe.records import Sample

MAX_PROSE_CHARS = 160
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
UNKNOWN = "The document does not say."
"""The gold answer of a question that only another document answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Example: `Fact(name="axis", text="Axis along which the means are computed")`."""

    name: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.name}: {self.text}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document in lines; those of the facts are the last ones."""

    pair: Pair
    lines: Sequence[str]
    facts: Sequence[Fact]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def load_documents(config: DocumentsConfig, cache: Path = CACHE) -> DataSet:
    documents = [document for pair in short_pairs(config, cache) if (document := _document(pair, config)) is not None]
    train, heldout = split_by_package(documents, config, "documents")
    return DataSet(
        name="documents",
        train=[_sample(document, train, config) for document in train],
        heldout=[_sample(document, heldout, config) for document in heldout[: config.num_heldout]],
    )


def _document(pair: Pair, config: DocumentsConfig) -> Document | None:
    """Return the document of a docstring; None where too few facts fit into it."""
    prose, facts = split_facts(pair.text)
    lines = [pair.summary]
    if prose:
        lines.append(shorten(" ".join(prose.split()), MAX_PROSE_CHARS))
    told = set(plain("\n".join(lines)).split())
    kept: list[Fact] = []
    for fact in facts:
        # A name that the prose has too would make the question ask about the prose.
        fits = sum(map(len, lines)) + len(lines) + len(fact.line) <= config.max_prompt_chars
        if fits and len(kept) < config.max_questions and plain(fact.name) not in told:
            kept.append(fact)
            lines.append(fact.line)
    return Document(pair=pair, lines=lines, facts=kept) if len(kept) >= config.min_questions else None


def _sample(document: Document, others: Sequence[Document], config: DocumentsConfig) -> Sample:
    rng = random.Random(f"documents/{config.seed}/{document.pair.place}")
    numbered = "\n".join(f"{number} {line}" for number, line in enumerate(document.lines, 1))
    shown = numbered if config.form == "lines" else document.text
    return Sample(
        sample_id=f"documents/{document.pair.place}",
        prompt=conversation(f"Summarise in {config.limit_chars} characters:\n{shown}"),
        fields={
            "document": document.text,
            "questions": _questions(document, others, rng, config),
            "demonstration": _demonstration(document, rng, config),
            "package": document.pair.package,
        },
    )


def _questions(
    document: Document, others: Sequence[Document], rng: random.Random, config: DocumentsConfig
) -> list[dict[str, Any]]:
    """Ask what each fact is; in the place of some, ask for something that only another document contains.

    One question at least has an answer, so that every document can earn something.
    """
    told = set(plain(document.text).split())
    questions = [{"question": _asked(fact), "answer": fact.text, "answerable": True} for fact in document.facts]
    for index in rng.sample(range(len(questions)), len(questions) - 1):
        stranger = rng.choice(rng.choice(others).facts)
        unknown = stranger.name != RESULT and plain(stranger.name) not in told
        if rng.random() < config.unanswerable_fraction and unknown:
            questions[index] = {"question": _asked(stranger), "answer": UNKNOWN, "answerable": False}
    return questions


def _asked(fact: Fact) -> str:
    return "What does it return?" if fact.name == RESULT else f"What is {fact.name}?"


def _demonstration(document: Document, rng: random.Random, config: DocumentsConfig) -> str:
    """Return a summary that keeps to the limit without knowing the questions: lines drawn blindly, in their order.

    So supervised training teaches what a summary looks like and to keep to the limit, and leaves the choice to
    reinforcement.
    """
    chosen: set[int] = set()
    limit = config.limit_chars
    for index in rng.sample(range(len(document.lines)), len(document.lines)):
        if len("\n".join(document.lines[i] for i in {*chosen, index})) <= limit:
            chosen.add(index)
    if config.form == "lines":
        return " ".join(str(index + 1) for index in sorted(chosen or {0}))
    return "\n".join(document.lines[index] for index in sorted(chosen)) or shorten(document.lines[0], limit)


# -- facts of a docstring ----------------------------------------------------------------------------------------


def split_facts(text: str) -> tuple[str, list[Fact]]:
    """Return (the prose before the first fact, the facts in their order, each name once) of a docstring's text.

    >>> split_facts("Rows of zeros are skipped.\\n\\nArgs:\\n    path (str): where the table is on disk.\\n    n: rows")
    ('Rows of zeros are skipped.', [Fact(name='path', text='where the table is on disk')])
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
    """Return the first sentence.

    None where it is too short to be asked about, too long to be kept, or no plain text.
    """
    text = SENTENCE_END.split(" ".join(match["text"].split()), maxsplit=1)[0].strip()
    words = plain(text).split()
    readable = text.isascii() and len(set(words)) >= MIN_WORDS and len(text) <= MAX_CHARS
    return Fact(name=match["name"] or RESULT, text=text) if readable and not text.endswith(":") else None
