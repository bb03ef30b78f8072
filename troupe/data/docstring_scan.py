"""Human-written pairs from Python source: what a docstring explains, and the one-line summary its author gave it.

Source is scanned for docstrings with one regular expression: 27,000 files in ten seconds, where parsing them takes
two minutes and finds the same pairs (39 of 17,500 differ). Copies are removed here; `troupe.data.docstrings` splits the
rest by package.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from troupe.data.near_duplicates import NearDuplicates, plain
from troupe.errors import DataError
from troupe.files import read_lines, to_json, write_atomically

SCAN_VERSION = 1
"""Part of the cache's key; raise it whenever the scan would find other pairs in the same files."""
DOCSTRING = re.compile(
    r"""(?:\A(?:[ \t]*(?:\#[^\n]*)?\n)*|:[ \t]*(?:\#[^\n]*)?\n\s*)"""
    r"""(?P<prefix>[rRuU]?)(?P<quote>\"""|''')(?P<body>.*?)(?<!\\)(?P=quote)""",
    re.DOTALL,
)
"""A triple-quoted text that opens a file or stands under a line that ends with a colon."""
MIN_SUMMARY_CHARS, MIN_TEXT_CHARS = 20, 120
SKIPPED_DIRECTORIES = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One docstring: `Pair(place="json/decoder.py:284", package="json", text="...", summary="Simple JSON
    decoder.")`.
    """

    place: str
    package: str
    text: str
    summary: str

    @property
    def pair(self) -> Pair:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    path: Path
    name: str
    """Path below its root, with forward slashes."""
    size: int
    modified_ns: int

    @property
    def package(self) -> str:
        return self.name.split("/")[0].removesuffix(".py")


def harvest(roots: Sequence[str], cache: Path) -> list[Pair]:
    """Return the distinct pairs below `roots` (empty: standard library and site-packages), by root, path and line.

    They are cached under `cache` by the names, sizes and times of the files, so a second call takes a few seconds.
    """
    files = source_files([Path(root) for root in roots] or installed_roots())
    cached = cache / f"docstrings-{_fingerprint(files)}.jsonl"
    if cached.is_file():
        return [Pair(**row) for row in read_lines(cached)]
    pairs = list(distinct(pair for file in files for pair in pairs_of(file)))
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, "".join(to_json(asdict(pair)) + "\n" for pair in pairs), is_data=True)
    return pairs


def installed_roots() -> list[Path]:
    """Return the interpreter's standard library and the directories that pip installs into."""
    paths = sysconfig.get_paths()
    return [Path(path) for path in dict.fromkeys(paths[key] for key in ("stdlib", "purelib", "platlib"))]


def source_files(roots: Sequence[Path]) -> list[SourceFile]:
    """Return the Python files below the roots, tests left out.

    Of one name in several roots the first counts, as in an import.
    """
    found: dict[str, SourceFile] = {}
    for root in roots:
        if not root.is_dir():
            raise DataError(
                f"data.roots: there is no directory {str(root)!r}; name directories that hold Python source"
            )
        for file in sorted(_walk(str(root), ""), key=lambda file: file.name.split("/")):
            found.setdefault(file.name, file)
    return list(found.values())


def _walk(directory: str, prefix: str) -> Iterator[SourceFile]:
    with os.scandir(directory) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in SKIPPED_DIRECTORIES and not entry.name.startswith("."):
                    yield from _walk(entry.path, name + "/")
            elif entry.name.endswith(".py") and not entry.name.startswith(("test_", "conftest.")) and entry.is_file():
                status = entry.stat()
                yield SourceFile(path=Path(entry.path), name=name, size=status.st_size, modified_ns=status.st_mtime_ns)


def _fingerprint(files: Iterable[SourceFile]) -> str:
    digest = hashlib.sha256(f"scan {SCAN_VERSION}".encode())
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0{file.modified_ns}\n".encode())
    return digest.hexdigest()[:16]


def distinct(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yield the pairs with a new summary and a text that is no near-duplicate of an earlier one."""
    summaries: set[str] = set()
    texts = NearDuplicates()
    for pair in pairs:
        if plain(pair.summary) not in summaries and texts.is_new(pair.text):
            summaries.add(plain(pair.summary))
            yield pair


def pairs_of(file: SourceFile) -> Iterator[Pair]:
    source = file.path.read_text(encoding="utf-8", errors="replace")
    for match in DOCSTRING.finditer(source):
        docstring = _content(match)
        pair = docstring and split_docstring(docstring)
        if pair:
            line = source.count("\n", 0, match.start("quote")) + 1
            yield Pair(place=f"{file.name}:{line}", package=file.package, text=pair[1], summary=pair[0])


def _content(match: re.Match[str]) -> str | None:
    """Return the literal as Python reads it, without its indentation; None for what only looks like a docstring."""
    body, quote = match["body"], match["quote"]
    if "\n" not in body:
        return None
    if "\\" in body and match["prefix"] not in ("r", "R"):
        try:
            with warnings.catch_warnings(action="ignore"):
                body = ast.literal_eval(f"{quote}{body}{quote}")
        except (SyntaxError, ValueError):
            return None
    return inspect.cleandoc(body)


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """Return (summary, text) of a docstring, None where the text explains too little or repeats the summary.

    >>> split_docstring("Close the file.\\n\\nToo short a text.") is None
    True
    """
    head, _, text = docstring.partition("\n\n")
    summary, text = " ".join(head.split()), text.strip()
    if len(summary) < MIN_SUMMARY_CHARS or len(text) < MIN_TEXT_CHARS or not summary[0].isalpha() or "://" in summary:
        return None
    return None if plain(summary) in plain(text) else (summary, text)
