"""The body of a request: no more of it is read than the endpoint takes, and none that holds what no text can."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from troupe.serving.openai_error import openai_error


async def read_body(request: Request, most: int) -> bytes | Response:
    """Return the body, or the refusal of one with more than `most` bytes."""
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


def parsed(body: bytes) -> Any:
    """Return the JSON of a body; ValueError or RecursionError where it is none, or has a character that no text can
    have.
    """
    value = json.loads(body)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("ascii", "backslashreplace").decode()
        raise ValueError(
            f"{half} is half of a surrogate pair and no character; send both halves, or leave it out"
        ) from None
    return value
