"""Errors in the shape that clients of OpenAI's API read: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from starlette.responses import JSONResponse

RETRY_AFTER_S = 30
"""Seconds that a client is told to wait for a replica that starts again, about as long as the shortest start."""


def openai_error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> JSONResponse:
    """Return the response; `type` follows from the status."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    headers = {"retry-after": str(RETRY_AFTER_S)} if code == "unavailable" else None
    return JSONResponse({"error": error}, status_code=status, headers=headers)


class ModelUnavailable(Exception):
    """The model cannot answer now; status 429 for one that has too much to do, 503 for one that is starting again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def response(self) -> JSONResponse:
        return openai_error(self.status, str(self), code="overloaded" if self.status == 429 else "unavailable")
