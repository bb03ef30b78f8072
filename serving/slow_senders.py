"""A deadline for the sending of a request, in the process that listens: Ray Serve's HTTP proxy, which has none.

uvicorn, which the proxy runs, waits for the rest of a head or a body as long as the client likes, so a few clients that
send a byte a second keep connections, and requests of the ingress, for ever. Here a connection is closed unless a
request is there whole within the deadline, whatever the request is and whether its token is right.
"""

from __future__ import annotations

import os
from asyncio import TimerHandle
from collections.abc import Mapping
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from troupe.serving.openai_error import openai_error

TIMEOUT = "TROUPE_REQUEST_TIMEOUT_S"


def proxy_environment(timeout_s: float) -> Mapping[str, str]:
    """Return what Ray Serve's proxy has to find in its environment: the function that it calls first, and the
    deadline.
    """
    return {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.limit_sending", TIMEOUT: str(timeout_s)}


def limit_sending() -> list[Any]:
    """Give uvicorn our protocol, in the proxy's process before it listens. There are no middlewares, which Ray asks
    for.
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:TimedProtocol"
    return []


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's, with a deadline from the connection or a request's first byte until its last."""

    _sending: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect()

    def on_message_complete(self) -> None:
        self._done()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._done()
        self._sending = self.loop.call_later(float(os.environ[TIMEOUT]), self._too_late)

    def _done(self) -> None:
        if self._sending is not None:
            self._sending.cancel()

    def _too_late(self) -> None:
        """Answer 408, unless an answer is under way already, and hang up."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            timeout_s = float(os.environ[TIMEOUT])
            refusal = openai_error(
                408,
                f"the request was not there whole after {timeout_s:g} s (request_timeout_s); send it faster, or a "
                f"shorter one",
            )
            refusal.headers["connection"] = "close"
            head = b"".join(b"%s: %s\r\n" % header for header in refusal.raw_headers)
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\n%s\r\n%s" % (head, refusal.body))
        self.transport.close()
