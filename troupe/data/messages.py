"""Conversations in the fields of a row: checked turn by turn, and parted into a prompt and the assistant's last turn.

That parting is what keeps answers out of prompts. Which field holds what is the business of the data sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from troupe.chat import turn_text
from troupe.data.lines import field_of, text_of
from troupe.errors import DataError
from troupe.records import Answer, Message, ToolCall

ROLES = ("system", "developer", "user", "assistant", "tool")


def messages_of(row: Mapping[str, Any], name: str, where: str) -> list[Message]:
    """Return a field's list of messages; DataError names what is wrong with a turn."""
    value = field_of(row, name, where)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {name!r} must be a list of messages, not empty, got {value!r:.60}")
    messages = [_message(turn, f"{where}: turn {number} of {name!r}") for number, turn in enumerate(value, start=1)]
    for number, message in enumerate(messages):
        before = messages[number - 1]["role"] if number else "nothing"
        if message["role"] == "tool" and before not in ("assistant", "tool"):
            raise DataError(
                f"{where}: turn {number + 1} of {name!r} is a tool's and stands behind {before}; a tool answers an "
                "assistant's turn"
            )
    return messages


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
        raise DataError(f"{where} needs a role ({', '.join(ROLES)}) and a content, got {turn!r:.60}")
    calls = [_call(call, where) for call in _list_of(turn, "tool_calls", where)]
    if calls and turn["role"] != "assistant":
        raise DataError(f"{where} has tool_calls, but its role is {turn['role']!r}; only an assistant calls tools")
    message: Message = {"role": turn["role"], "content": _content(turn, where, may_be_null=bool(calls))}
    if calls:
        message["tool_calls"] = calls
    # Two names are in use for one thing; a templated data set may have a column of nulls for either.
    reasoning = _text(turn, "reasoning", where) or _text(turn, "reasoning_content", where)
    if reasoning and turn["role"] == "assistant":
        message["reasoning"] = reasoning
    if speaker := _text(turn, "name", where):
        message["name"] = speaker
    if call_id := _text(turn, "tool_call_id", where):
        message["tool_call_id"] = call_id
    return message


def _content(turn: Mapping[str, Any], where: str, *, may_be_null: bool) -> str | None:
    content = turn.get("content")
    if isinstance(content, str) or (content is None and may_be_null):
        return content
    if not isinstance(content, list) or not content:
        raise DataError(f"{where} needs a text as content, or calls of tools, got {turn!r:.60}")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise DataError(f"{where} has a part of type {kind!r}; models here read text only, so leave that sample out")
    return str(part["text"])


def _call(call: Any, where: str) -> ToolCall:
    """Check one call of a tool: OpenAI's form, or its function alone; arguments as a mapping or as its JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"{where} has a tool call without a function's name: {call!r:.60}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where} calls {function['name']} with arguments that are no JSON ({error!s:.60}): {arguments!r:.60}"
            ) from None
    if not isinstance(arguments, Mapping | None):
        raise DataError(f"{where} calls {function['name']} with arguments that are no mapping: {arguments!r:.60}")
    checked: ToolCall = {
        "type": "function",
        "function": {"name": function["name"], "arguments": dict(arguments or {})},
    }
    return checked if not call.get("id") else {"id": str(call["id"]), **checked}


def tools_of(row: Mapping[str, Any], name: str, where: str) -> list[Mapping[str, Any]] | None:
    """Return the descriptions of tools in a field, a list or the JSON of one; None where it is absent or empty."""
    tools = row.get(name)
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: field {name!r} must be a list of tools, and is no JSON: {error!s:.60}") from None
    found = _list_of({name: tools or None}, name, where)
    for number, tool in enumerate(found, start=1):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: tool {number} in {name!r} needs a function with a name, got {tool!r:.60}")
    return found or None


def _list_of(row: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = row.get(name)
    if value is not None and not isinstance(value, list):
        raise DataError(f"{where}: {name!r} must be a list, got {value!r:.60}")
    return value or []


def _text(turn: Mapping[str, Any], name: str, where: str) -> str | None:
    value = turn.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {name!r} must be a text, got {value!r:.60}")
    return value


def part(messages: list[Message]) -> tuple[list[Message], Message | None]:
    """Return (all turns before the assistant's last one, that turn); None for messages that end otherwise.

    >>> part([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])
    ([{'role': 'user', 'content': '2+2?'}], {'role': 'assistant', 'content': '4'})
    """
    if messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], messages[-1]


def is_empty(turn: Message) -> bool:
    """Return whether a turn has neither text nor calls."""
    return not (turn["content"] or "").strip() and not turn.get("tool_calls")


def as_answer(turns: Sequence[Message]) -> Answer:
    """Return an answer's turns in their shortest form: the text of a turn that has nothing else."""
    first = turns[0]
    return first["content"] or "" if len(turns) == 1 and first.keys() == {"role", "content"} else list(turns)


def num_chars(messages: Sequence[Message]) -> int:
    """Count the characters of all turns together."""
    return sum(len(turn_text(message)) for message in messages)


def answer_of(row: Mapping[str, Any], name: str, where: str) -> Answer:
    """Return an answer: a field that holds a text, or messages of which the last is the assistant's."""
    if not isinstance(row.get(name), list):
        return text_of(row, name, where)
    _, answer = part(messages_of(row, name, where))
    if answer is None or is_empty(answer):
        raise DataError(f"{where}: the messages in {name!r} must end with an assistant's turn that is not empty")
    return as_answer([answer])


def num_words(messages: Sequence[Message]) -> int:
    """Count the words of all turns together, parted by white space."""
    return sum(len(turn_text(message).split()) for message in messages)
