"""A real S3 server in a process of its own, and a proxy before it that fails, stalls and truncates on command."""

from __future__ import annotations

import functools
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a moto server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **CREDENTIALS}
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Request:
    """What the proxy is asked; `path` is without the query."""

    method: str
    path: str
    query: str
    number: int


Fault = Callable[[Request], str | None]
"""What happens to a request: None (nothing), `drop`, `stall`, `truncate`, or `<status>[ region]`."""


@dataclass
class S3Proxy:
    """Between a client and the server; every request is told to `fault`, and `after` is called when one changed the
    store.
    """

    server: str
    fault: Fault = lambda request: None
    after: Callable[[Request], None] = lambda request: None
    seen: list[Request] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def calm(self) -> None:
        self.fault, self.after = lambda request: None, lambda request: None
        self.go_on.set()
        self.go_on = threading.Event()
        self.seen.clear()


@contextmanager
def proxied(server: str) -> Iterator[S3Proxy]:
    proxy = S3Proxy(server)
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            request = Request(self.command, path, query, len(proxy.seen))
            proxy.seen.append(request)
            fault = proxy.fault(request)
            if fault == "drop":
                self.close_connection = True
                return
            if fault == "stall":
                proxy.go_on.wait(120)
                self.close_connection = True
                return
            if fault and fault[0].isdigit():
                self._refuse(*fault.split())
                return
            sent = body[: len(body) // 2] if fault == "truncate" else body
            with one_at_a_time:
                status, headers, answer = self._pass_on(sent)
                if self.command in ("PUT", "POST", "DELETE"):
                    proxy.after(request)
            cut = answer[: len(answer) // 2] if fault == "truncate" and self.command == "GET" else answer
            self._answer(status, headers, cut, length=len(answer))
            self.close_connection = self.close_connection or len(cut) < len(answer)

        def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            upstream = http.client.HTTPConnection(proxy.server.removeprefix("http://"), timeout=120)
            dropped = ("content-length", "expect", "connection", "content-md5")
            headers = {key: value for key, value in self.headers.items() if key.lower() not in dropped}
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            response = upstream.getresponse()
            found = (response.status, response.getheaders(), response.read())
            upstream.close()
            return found

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, length: int) -> None:
            self.send_response_only(status)
            own = ("content-length", "connection", "transfer-encoding")
            for key, value in headers:
                if key.lower() not in own or (key.lower() == "content-length" and self.command == "HEAD"):
                    self.send_header(key, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: str, region: str | None = None) -> None:
            headers = [("x-amz-bucket-region", region)] if region else []
            self._answer(int(status), headers, b"", length=0)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            """Clients that go away are what these tests are about."""

    listening = Server(("127.0.0.1", 0), Handler)
    proxy.address = f"http://127.0.0.1:{listening.server_address[1]}"
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield proxy
    proxy.go_on.set()
    listening.shutdown()
    listening.server_close()


@functools.cache
def client(server: str) -> Any:
    """A client of the server itself, past any proxy."""
    return boto3.client(
        "s3",
        endpoint_url=server,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
