"""The live page: the report of any run of a directory, over HTTP, which follows the files without losing its place.

`LiveServer` answers two paths. `/<run>` is the page; `/<run>?since=<signature>` is what its script asks every few
seconds: 204 while nothing has changed, and the new body otherwise. It reads, and never writes.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from troupe.errors import ConfigError, TroupeError
from troupe.report.report import report_body
from troupe.report.report_data import read_run
from troupe.report.report_page import escape, page
from troupe.report.watching import runs_in, signature, writer_is_gone
from troupe.secrets import page_text

LOOPBACK = ("127.0.0.1", "::1", "localhost")
COOKIE = "troupe_watch"
LIVE_STYLE = """<style>
.live { position: sticky; top: 0; z-index: 2; display: flex; align-items: center; gap: 12px;
  padding: 8px max(24px, calc(50% - 566px));
  background: var(--page); border-bottom: 1px solid var(--line); font-size: 14px; }
.live select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 5px 8px; min-width: 0; max-width: 60vw; }
.live p { color: var(--soft); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.live .lost { color: var(--bad); } section { scroll-margin-top: 48px; }
@media (max-width: 720px) { .live { padding: 8px 14px; } }
</style>"""
LIVE_SCRIPT = """
const main = document.querySelector('main'), told = document.querySelector('.live p');
document.querySelector('.live select').addEventListener('change', event => { location.href = event.target.value; });
const scrolled = '.text, .tablebox, .charts, pre';
// Replaced by its new self: what was open stays open, and what was scrolled stays where it was, the page included.
function replace(body) {
  const open = [...main.querySelectorAll('details')].map(d => d.open), y = scrollY;
  const inner = [...main.querySelectorAll(scrolled)].map(e => [e.scrollLeft, e.scrollTop]);
  main.innerHTML = body;
  [...main.querySelectorAll('details')].forEach((d, i) => { if (i < open.length) d.open = open[i]; });
  [...main.querySelectorAll(scrolled)].forEach((e, i) => { if (inner[i]) [e.scrollLeft, e.scrollTop] = inner[i]; });
  scrollTo({top: y, behavior: 'instant'});
  wire();
}
let busy = false;
async function follow() {
  if (busy || document.hidden || main.querySelector('.cursor[style*=visible]')) return;
  busy = true;
  try {
    const answer = await fetch(location.pathname + '?since=' + main.dataset.since);
    if (answer.status === 200) { main.dataset.since = answer.headers.get('X-Signature'); replace(await answer.text()); }
    else if (answer.status !== 204) throw new Error(await answer.text());
    told.textContent = 'read ' + new Date().toLocaleTimeString(); told.className = '';
  } catch (error) { told.textContent = 'not reached since ' + told.textContent.replace(/.*(read|since) /, ''); told.className = 'lost'; }
  busy = false;
}
setInterval(follow, 3000);
document.addEventListener('visibilitychange', follow);
"""


class LiveServer(ThreadingHTTPServer):
    """Serves the runs of `directory`; beyond loopback only to those who know `key`."""

    daemon_threads = True

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """`port` 0 is a free one. Raises ConfigError when the address cannot be had."""
        self.directory = directory
        self.key = None if host in LOOPBACK else secrets.token_urlsafe(16)
        self.host = host
        self._bodies: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"the page cannot listen on {host}:{port} ({error.strerror}); --port 0 takes a free port"
            ) from None

    def url(self, run: str) -> str:
        """Where the page of a run is, with the key where one is needed."""
        asked = f"?key={self.key}" if self.key else ""
        return f"http://{self.host}:{self.server_address[1]}/{quote(run)}{asked}"

    def body(self, run: str) -> tuple[str, str]:
        """(signature, HTML) of the run's report; built again when a file has changed."""
        directory = self.directory / run
        with self._lock:
            mark = signature(directory)
            if self._bodies.get(run, ("", ""))[0] != mark:
                record = read_run(directory)
                gone = record.state == "running" and writer_is_gone(directory)
                note = (
                    '<p class="banner"><b class="failed">Its process is gone</b> and did not say why.</p>'
                    if gone
                    else ""
                )
                self._bodies[run] = (mark, page_text(note + report_body(record)))
            return self._bodies[run]


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        if not self._host_is_ours():
            self._answer(403, "this page answers to its own address only")
            return
        if not self._knows_the_key(query):
            self._answer(401, "open the address that jobs/watch.py printed, with its key")
            return
        names = runs_in(self.server.directory)
        name = unquote(asked.path).strip("/")
        if not name and names:
            self._answer(302, "", {"Location": f"/{quote(names[0])}{f'?{asked.query}' if asked.query else ''}"})
        elif name not in names:  # also what would lead out of the directory
            self._answer(404, f"there is no run {name!r} in {self.server.directory}")
        else:
            self._run(name, names, query)

    def _run(self, name: str, names: list[str], query: dict[str, str]) -> None:
        try:
            mark, body = self.server.body(name)
        except (TroupeError, OSError, KeyError, TypeError, ValueError) as error:
            # Somebody else writes these files; the next look may find them whole.
            self._answer(503, f"{name} cannot be read now: {type(error).__name__}: {error}")
            return
        if "since" not in query:
            self._answer(200, _page(name, names, mark, body), {"Content-Type": "text/html; charset=utf-8"})
        elif query["since"] == mark:
            self._answer(204, "")
        else:
            self._answer(200, body, {"X-Signature": mark, "Content-Type": "text/html; charset=utf-8"})

    def _host_is_ours(self) -> bool:
        """On loopback: a page elsewhere could have its name lead here and read along."""
        if self.server.key is not None:
            return True
        host = self.headers.get("Host", "").rpartition(":")[0].strip("[]")
        return host in LOOPBACK

    def _knows_the_key(self, query: dict[str, str]) -> bool:
        if self.server.key is None:
            return True
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        given = query.get("key") or (cookie.value if cookie else "")
        return hmac.compare_digest(given.encode(), self.server.key.encode())

    def _answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        known = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", **(headers or {})}
        if self.server.key is not None and status in (200, 302):
            known["Set-Cookie"] = f"{COOKIE}={self.server.key}; HttpOnly; SameSite=Strict; Path=/"
        for name, value in known.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status != 204:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a page that asks every three seconds would fill the terminal."""


def _page(name: str, names: list[str], mark: str, body: str) -> str:
    options = "".join(
        f'<option value="/{quote(other)}"{" selected" if other == name else ""}>{escape(other)}</option>'
        for other in names
    )
    top = f'{LIVE_STYLE}<div class="live"><select aria-label="run">{options}</select><p>live</p></div>'
    html = page(f"{name} · live", body, script=LIVE_SCRIPT, top=top)
    return html.replace("<main>", f'<main data-since="{mark}">', 1)
