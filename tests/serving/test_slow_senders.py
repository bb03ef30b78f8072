"""The deadline for the sending of a request, at a uvicorn that listens as Ray Serve's proxy does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
import uvicorn.config
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from troupe.serving.slow_senders import TIMEOUT, limit_sending

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n"
TIMEOUT_S = 0.5


async def application(scope, receive, send) -> None:
    """Refuse without reading, or answer with the length of the body."""
    request = Request(scope, receive)
    text = "no" if scope["path"] == "/refused" else str(len(await request.body()))
    await PlainTextResponse(text)(scope, receive, send)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")
        patch.setenv(TIMEOUT, str(TIMEOUT_S))
        assert limit_sending() == []
        server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join(10)


def drip(port: int, *parts: bytes) -> bytes:
    """What comes back to a client that sends these parts and then a byte every tenth of a second, or nothing at all,
    until it is hung up on.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        received = b""
        started = time.monotonic()
        for part in parts:
            connection.sendall(part)
        connection.settimeout(0.1)
        while time.monotonic() - started < 10 * TIMEOUT_S:
            try:
                data = connection.recv(4096)
                if not data:
                    return received
                received += data
            except TimeoutError:
                connection.sendall(b"x" if parts else b"")
            except ConnectionResetError:
                return received
    raise AssertionError("the connection is still open")


@pytest.mark.parametrize("parts", [(), (b"GET /",), (HEAD,), (HEAD + b"\r\n",), (HEAD + b"\r\n", b"x" * 40)])
def test_a_client_that_sends_too_slowly_is_told_so_and_hung_up_on(port, parts):
    head, _, body = drip(port, *parts).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"(request_timeout_s)" in body


def test_a_refused_client_cannot_go_on_sending_for_ever(port):
    assert drip(port, b"POST /refused HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n").startswith(
        b"HTTP/1.1 200 "
    )


def test_a_second_request_on_the_same_connection_has_the_deadline_too(port):
    whole = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\nx"
    received = drip(port, whole + b"GET /")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in received


def test_a_quick_request_and_a_pause_between_two_are_no_slow_senders(port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            assert client.post("/", content=b"x" * 500_000).text == "500000"
            time.sleep(2 * TIMEOUT_S)
