"""Conversations in the fields of a row: checked turn by turn, and parted into a prompt and the assistant's last turn.

That parting is what keeps answers out of prompts. Which field holds what is the business of the data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from troupe.data.lines import field_of, text_of
from troupe.errors import DataError
from troupe.records import Message

ROLES = ("system", "user", "assistant", "tool")


def messages_of(row: Mapping[str, Any], name: str, where: str) -> list[Message]:
    """Return a field's list of messages, with role and content alone; DataError names what is wrong with a turn."""
    value = field_of(row, name, where)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {name!r} must be a list of messages, not empty, got {value!r:.60}")
    return [_message(turn, where, name) for turn in value]


def _message(turn: Any, where: str, name: str) -> Message:
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
        raise DataError(
            f"{where}: each message in {name!r} needs a role ({', '.join(ROLES)}) and a text as content, got "
            f"{turn!r:.60}"
        )
    return {"role": turn["role"], "content": turn["content"]}


def part(messages: list[Message]) -> tuple[list[Message], str | None]:
    """Return (all turns before the assistant's last one, that turn's text); None for messages that end otherwise.

    >>> part([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])
    ([{'role': 'user', 'content': '2+2?'}], '4')
    """
    if messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], messages[-1]["content"]


def num_chars(messages: list[Message]) -> int:
    """Count the characters of all turns together."""
    return sum(len(message["content"]) for message in messages)


def answer_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return an answer as text: a field that holds a text, or messages of which the last is the assistant's."""
    if not isinstance(row.get(name), list):
        return text_of(row, name, where)
    _, answer = part(messages_of(row, name, where))
    if answer is None or not answer.strip():
        raise DataError(f"{where}: the messages in {name!r} must end with an assistant's turn that is not empty")
    return answer


def num_words(messages: list[Message]) -> int:
    """Count the words of all turns together, parted by white space."""
    return sum(len(message["content"].split()) for message in messages)
