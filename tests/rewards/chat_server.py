"""A chat endpoint on loopback that does what a test tells it to: answer, refuse, stall, talk nonsense, hang up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    text: str | None = None
    """The reply's content."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: str | None = None
    """The whole body, in place of a completion."""
    delay_s: float = 0.0
    hang_up: bool = False
    """Close the connection without an answer."""


class ChatServer:
    """`respond` gets the request's body and its number (from 0) and says what happens."""

    def __init__(self, respond: Callable[[dict[str, Any], int], Answer | str], *, key: str | None = None) -> None:
        self.respond, self.key = respond, key
        self.bodies: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator[ChatServer]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()

    def answer(self, path: str, authorization: str | None, body: dict[str, Any]) -> Answer:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.arrivals.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if path != PATH:
                return Answer(status=404, raw=f"there is nothing at {path}")
            if self.key is not None and authorization != f"Bearer {self.key}":
                return Answer(status=401, raw=f"wrong key in '{authorization}'")
            answer = self.respond(body, number)
            answer = Answer(text=answer) if isinstance(answer, str) else answer
            time.sleep(answer.delay_s)
            return answer
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = server.answer(self.path, self.headers["Authorization"], body)
                if answer.hang_up:
                    self.close_connection = True
                    return
                content = (answer.raw if answer.raw is not None else completion(answer.text or "")).encode()
                try:
                    self.send_response(answer.status)
                    for name, value in {**answer.headers, "Content-Length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client did not wait
                    self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler


def completion(text: str) -> str:
    """An endpoint's answer that cost 7 tokens."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message}], "usage": {"total_tokens": 7}})
