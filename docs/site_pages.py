"""Pages of the documentation site that no file in docs/ holds: README, CONTRIBUTING, lists, and the API by room.

mkdocs calls the functions whose names begin with `on_` (mkdocs.yml names this file). The API pages only name
modules; mkdocstrings reads their docstrings without importing them.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / ".cache" / "docs-source"
"""A copy of the package without links, whose rooms all have an `__init__.py`: mkdocstrings finds no others."""
PYTHON = "Python"
"""The first page of the API: the modules that lie directly in `troupe/`."""
OPTIONS = "    options: {show_root_heading: false, heading_level: 3}"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_startup(**_: Any) -> None:
    """Copy the sources of the API, before mkdocstrings looks where they are."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "troupe", SOURCE / "troupe", ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    for room, _page in api_pages():
        (SOURCE / "troupe" / ("" if room == PYTHON else room) / "__init__.py").touch()
    for file in SOURCE.rglob("*.py"):
        file.write_text(without_links(file.read_text()))


def on_config(config: Any) -> Any:
    """Put a page of every room behind API in the navigation."""
    for entry in config["nav"]:
        if "API" in entry:
            entry["API"] = [{title: path} for title, path in api_pages()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    made = {
        "index.md": (ROOT / "README.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "decisions/index.md": list_of("Decisions", DOCS / "decisions"),
        "results/index.md": list_of("Results", DOCS / "results"),
        **{path: api_page(title) for title, path in api_pages()},
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Point links of the repository at pages of the site; what has no page there keeps its words alone."""
    outside = page.file.src_uri in ("index.md", "contributing.md")

    def moved(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        path, mark, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        path = path.removeprefix("docs/") if outside else path
        path = {"../CONTRIBUTING.md": "contributing.md", "CONTRIBUTING.md": "contributing.md"}.get(path, path)
        path = f"{path.rstrip('/')}/index.md" if path.rstrip("/") in ("decisions", "results") else path
        where = (Path(page.file.src_uri).parent / path).as_posix()
        if outside and files.get_file_from_path(where) is None:
            return words
        return f"{image}[{words}]({path}{mark}{anchor})"

    return LINK.sub(moved, markdown)


def list_of(title: str, directory: Path) -> str:
    """Return a page with a link to each page of a directory, by its heading."""
    lines = [
        f"* [{file.read_text().partition(chr(10))[0].lstrip('# ')}]({file.name})"
        for file in sorted(directory.glob("*.md"))
    ]
    return "\n".join([f"# {title}", "", *lines, ""])


def without_links(source: str) -> str:
    """Return a module whose docstrings have no `[a][b]`, which is a link in Markdown and an index in Python."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = re.sub(r"(\] ?|^\s+)\[", "\\1\u200b[", lines[number])
    return "".join(lines)


# -- the API -----------------------------------------------------------------------------------------------------------


def api_pages() -> Iterator[tuple[str, str]]:
    """Yield (room, page) of every part of the package."""
    yield PYTHON, "api/python.md"
    for room in sorted(path.name for path in (ROOT / "troupe").iterdir() if path.is_dir() and path.name[0] not in "_."):
        yield room, f"api/{room}.md"


def api_page(room: str) -> str:
    """Return a page that names the modules of a room, each under its first sentence."""
    directory = ROOT / "troupe" / ("" if room == PYTHON else room)
    parts = [f"# {room}", ""]
    for file in sorted(directory.glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        if file.name != "__init__.py" and text:
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            parts += [
                f"## `{module}`",
                "",
                f"::: {module}",
                "    options: {show_root_heading: false, heading_level: 3}",
                "",
            ]
    return "\n".join(parts)
