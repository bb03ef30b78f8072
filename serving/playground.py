"""The playground: one page beside the API, where two served models answer the same prompt side by side.

The page (`playground.html`, `.css`, `.js` and the libraries in `vendor/`, sent as one) is the same for everybody and
holds no data: models, example prompts, answers and rewards come from the public API, with the token that the person
gives it. So it needs no token.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from troupe.files import iter_lines
from troupe.style import STYLE

PATHS = ("/", "/playground")
"""Where the page is; these are to be reachable without a token, which a browser cannot send for a page."""
LIBRARIES = ("marked.umd.js", "temml.min.js")
"""Markdown, and LaTeX as MathML; licences beside them."""
MAX_PROMPT = 4000
"""Characters of an example prompt; a longer one is no example."""


def playground_router() -> APIRouter:
    """Return the page's routes."""
    router = APIRouter()
    for path in PATHS:
        router.add_api_route(path, _answer, methods=["GET"], include_in_schema=False)
    return router


async def _answer() -> HTMLResponse:
    page, policy = playground_page()
    return HTMLResponse(
        page,
        headers={
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


@functools.cache
def playground_page() -> tuple[str, str]:
    """Return (the page, its content security policy: no script but its own, no address but this server's)."""
    libraries = [_read(f"vendor/{name}") for name in LIBRARIES]
    style, script = STYLE + _part("css"), "\n".join(["", *libraries, _part("js")])
    page = _part("html").replace("<style>", f"<style>{style}", 1).replace("<script>", f"<script>{script}", 1)
    rules = ["default-src 'none'", f"style-src {_hash(style)}", f"script-src {_hash(script)}", "connect-src 'self'"]
    return page, "; ".join([*rules, "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])


def _part(kind: str) -> str:
    return _read(f"playground.{kind}")


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(inside: str) -> str:
    """Return how a content security policy names a style or a script that stands in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


TURN = re.compile(r"(?:\A|\n\n)(system|user|assistant): ")


def run_examples(run: Path, count: int = 6) -> list[dict[str, Any]]:
    """Example prompts out of a run's held-out answers, for `metadata.examples` of its card in `/v1/models`.

    Example: `{"prompt": "Eva has 2 cards and buys 10 more. How many cards now?", "gold": "12", "chat": True}`. Empty
    where the run has none; conversations of several turns are left out.
    """
    examples: dict[str, dict[str, Any]] = {}
    for row in iter_lines(run / "answers.jsonl"):
        example = _example(row["prompt"])
        if example is not None and len(example["prompt"]) <= MAX_PROMPT:
            examples.setdefault(row["prompt"], example | ({"gold": row["gold"]} if row.get("gold") else {}))
        if len(examples) == count:
            break
    return list(examples.values())


def _example(prompt: str) -> dict[str, Any] | None:
    """Return the prompt as a run writes it, `user: ...` for a chat, taken apart; None where there are several turns."""
    if TURN.match(prompt) is None:
        return {"prompt": prompt, "chat": False}
    _, *parts = TURN.split(prompt)
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    match [role for role, _ in turns]:
        case ["user"]:
            return {"prompt": turns[0][1], "chat": True}
        case ["system", "user"]:
            return {"prompt": turns[1][1], "system": turns[0][1], "chat": True}
    return None
