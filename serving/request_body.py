"""The body of a request, of which no more is read than the endpoint takes."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.openai_error import openai_error


async def read_body(request: Request, most: int) -> bytes | Response:
    """The body, or the refusal of one with more than `most` bytes."""
    refusal = openai_error(
        400, f"the request is larger than {most} bytes (max_request_mib); shorten it", code="context_length_exceeded"
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most:
        return refusal
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                return refusal
            parts.append(part)
    except ClientDisconnect:
        return openai_error(400, "the client hung up before the end of its request")
    return b"".join(parts)
