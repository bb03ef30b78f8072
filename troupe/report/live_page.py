"""The live page: the report of any run of a directory over HTTP, loaded again when a file of the run has changed.

`LiveServer` answers two paths. `/<run>` is the report; `/<run>?since=<signature>`, which its script fetches every few
seconds, is 204 while nothing has changed and 200 otherwise. It reads, and never writes.
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
from troupe.report.report import report_page
from troupe.report.report_data import read_run
from troupe.report.watching import runs_in, signature, writer_is_gone
from troupe.secrets import page_text

LOOPBACK = ("127.0.0.1", "::1", "localhost")
COOKIE = "troupe_watch"


class LiveServer(ThreadingHTTPServer):
    """A server of the runs of `directory`; beyond loopback only for requests with its `key`."""

    daemon_threads = True

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; `port` 0 is a free one. Raises ConfigError when the address cannot be had."""
        self.directory = directory
        self.key = None if host in LOOPBACK else secrets.token_urlsafe(16)
        self.host = host
        self._page = ("", "", "")
        self._lock = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"the page cannot listen on {host}:{port} ({error.strerror}); --port 0 takes a free port"
            ) from None

    def url(self, run: str) -> str:
        """Return where the page of a run is, with the key where one is needed."""
        key = f"?key={self.key}" if self.key else ""
        return f"http://{self.host}:{self.server_address[1]}/{quote(run)}{key}"

    def page(self, run: str, names: list[str]) -> str:
        """Return the run's report, built again when a file has changed."""
        directory = self.directory / run
        with self._lock:
            mark = signature(directory)
            if self._page[:2] != (run, mark):
                record = read_run(directory)
                gone = record.state == "running" and writer_is_gone(directory)
                self._page = (
                    run,
                    mark,
                    page_text(report_page(record, {"since": mark, "run": run, "runs": names, "gone": gone})),
                )
            return self._page[2]


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        names, name = runs_in(self.server.directory), unquote(address.path).strip("/")
        if not self._has_our_host():
            self._answer(403, "this page answers to its own address only")
        elif not self._has_the_key(query):
            self._answer(401, "open the address that jobs/watch.py printed, with its key")
        elif not name and names:
            self._answer(302, "", {"Location": f"/{quote(names[0])}{f'?{address.query}' if address.query else ''}"})
        elif name not in names:  # also what would lead out of the directory
            self._answer(404, f"there is no run {name!r} in {self.server.directory}")
        elif "since" in query:
            unchanged = query["since"] == signature(self.server.directory / name)
            self._answer(204 if unchanged else 200, "")
        else:
            self._send_report(name, names)

    def _send_report(self, name: str, names: list[str]) -> None:
        try:
            page = self.server.page(name, names)
        except (TroupeError, OSError, KeyError, TypeError, ValueError) as error:
            # Another process writes these files; the next look may find them whole.
            self._answer(503, f"{name} cannot be read now: {type(error).__name__}: {error}", {"Refresh": "3"})
        else:
            self._answer(200, page, {"Content-Type": "text/html; charset=utf-8"})

    def _has_our_host(self) -> bool:
        """Compare the Host header: on loopback, a name of another page could lead here and its script read along."""
        host = self.headers.get("Host", "").rpartition(":")[0].strip("[]")
        return self.server.key is not None or host in LOOPBACK

    def _has_the_key(self, query: dict[str, str]) -> bool:
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
        if status != 204:
            known["Content-Length"] = str(len(content))
        for name, value in known.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a page that asks every three seconds would fill the terminal."""
