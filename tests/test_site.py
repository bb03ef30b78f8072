"""The documentation site, as far as it can be judged without building it: each page is in its navigation, once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
MADE = {"index.md", "contributing.md", "decisions/index.md", "results/index.md"}
"""Pages that docs/site_pages.py makes."""


def pages(entries: Any) -> Iterator[str]:
    """The files that a navigation names, however deep."""
    if isinstance(entries, str):
        yield entries
    for entry in entries if isinstance(entries, list) else entries.values() if isinstance(entries, dict) else ():
        yield from pages(entry)


def test_every_page_is_in_the_navigation_once() -> None:
    named = list(pages(SITE["nav"]))
    assert len(set(named)) == len(named)
    assert set(named) == MADE | {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_pages_that_are_made_are_those_that_the_hook_makes() -> None:
    (hook,) = SITE["hooks"]
    assert set(re.findall(r'^ +"([\w/]+\.md)":', (ROOT / hook).read_text(), flags=re.MULTILINE)) == MADE


def test_links_between_pages_lead_to_pages_and_headings_that_are_there() -> None:
    found = {}
    for page in sorted((ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            file = (page.parent / path) if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                found[page.name] = target
    assert found == {}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
