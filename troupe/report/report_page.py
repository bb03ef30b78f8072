"""The page around a report: its style, its few lines of script, and the HTML helpers. No content."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from troupe.style import STYLE

SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def escape(value: object) -> str:
    return html.escape(str(value))


def page(title: str, body: str, *, script: str = "", top: str = "") -> str:
    """A whole document with its own style and script, which refers to nothing outside; `top` goes before the body and
    `script` after the page's own."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>\n{STYLE}</style></head>\n'
        f"<body>{top}<main>{body}</main><script>\n{SCRIPT}{script}</script></body></html>\n"
    )


def section(title: str, body: str, *, lead: str = "") -> str:
    """A titled part of the page, nothing when it has no content."""
    if not body:
        return ""
    name = title.lower().replace(" ", "-")
    introduction = f'<p class="lead" style="margin:-8px 0 14px">{escape(lead)}</p>' if lead else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{introduction}{body}</section>'


def navigation(titles: Iterable[str]) -> str:
    links = "".join(f'<a href="#{title.lower().replace(" ", "-")}">{escape(title)}</a>' for title in titles)
    return f"<nav>{links}</nav>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table whose cells are ready-made HTML; the columns in `numbers` are set to the right."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if index in numbers else ''}>{value}</{tag}>" for index, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<tr>{cells('th', [escape(column) for column in columns])}</tr>"
    return f'<div class="tablebox"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
