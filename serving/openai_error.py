"""Errors in the shape that clients of OpenAI's API read: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from starlette.responses import JSONResponse


def openai_error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> JSONResponse:
    """The response; `type` follows from the status."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status_code=status)
