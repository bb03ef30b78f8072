"""What travels between a model's replica and the ingress: ASGI messages, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
"""What an ASGI application sends: the start of a response, or a part of its body."""


class NoReplica(Exception):
    """No replica can answer: the engine of the one that was asked is dead, or none runs."""


def joined(messages: Sequence[Message]) -> bytes:
    """Return the body in these messages."""
    return b"".join(message.get("body", b"") for message in messages if message["type"] == "http.response.body")


def complete(messages: Sequence[Message]) -> bool:
    """Return whether the response ends with these messages."""
    last = messages[-1] if messages else {"type": ""}
    return last["type"] == "http.response.body" and not last.get("more_body", False)
