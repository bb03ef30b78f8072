"""What OpenAI's API refuses in a request and vLLM lets through, or fails at without saying why.

Only what needs no model: the ingress asks before it hands a request on. All other mistakes are vLLM's to find.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from starlette.responses import Response

from troupe.serving.openai_error import openai_error

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
INSTEAD = ("tool_calls", "function_call", "refusal", "audio")
"""What an assistant's message may have instead of a content."""
CHOICES = ("anyOf", "oneOf", "allOf")


def request_mistake(asked: Mapping[str, Any]) -> Response | None:
    """Return the refusal of a request for a generated answer; None where there is nothing to refuse."""
    return _message_mistake(asked.get("messages")) or _schema_mistake(asked)


def _message_mistake(messages: Any) -> Response | None:
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        if not isinstance(message, Mapping):
            continue
        role = message.get("role")
        if role not in ROLES:
            where = f"messages[{index}].role"
            return openai_error(
                400, f"{where} is {str(role)[:100]!r}; it must be one of {', '.join(ROLES)}", param=where
            )
        if message.get("content") is None and not (role == "assistant" and any(message.get(key) for key in INSTEAD)):
            where = f"messages[{index}].content"
            return openai_error(400, f"{where} is missing; give the {role}'s text, which may be empty", param=where)
    return None


def _schema_mistake(asked: Mapping[str, Any]) -> Response | None:
    for param, path in (
        ("response_format", ("response_format", "json_schema", "schema")),
        ("structured_outputs", ("structured_outputs", "json")),
    ):
        schema: Any = asked
        for key in path:
            schema = schema.get(key) if isinstance(schema, Mapping) else None
        where = endless_reference(schema)
        if where is not None:
            message = (
                f"the JSON schema's {where} refers to itself and nothing else, so no text fits it; put an "
                f"object or a list between"
            )
            return openai_error(400, message, param=param)
    return None


def endless_reference(schema: Any) -> str | None:
    """Return the part of a JSON schema that comes back to itself by references and choices alone; None where none does.

    >>> endless_reference({"$defs": {"a": {"$ref": "#/$defs/a"}}})
    '#/$defs/a'
    >>> endless_reference({"properties": {"next": {"$ref": "#"}}})
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError:
            return None
    try:
        TopologicalSorter(dict(_parts("#", schema))).prepare()
    except CycleError as error:
        return str(error.args[1][0])
    except RecursionError:  # deeper than vLLM takes, which says so
        return None
    return None


def _parts(place: str, part: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield (place of each object in a schema, the places that stand for it)."""
    if isinstance(part, Mapping):
        targets = [unquote(part["$ref"])] if isinstance(part.get("$ref"), str) else []
        for key in CHOICES:
            targets += [
                f"{place}/{key}/{index}" for index in range(len(part[key]) if isinstance(part.get(key), list) else 0)
            ]
        yield place, targets
        for key, inner in part.items():
            yield from _parts(f"{place}/{str(key).replace('~', '~0').replace('/', '~1')}", inner)
    elif isinstance(part, list):
        for index, inner in enumerate(part):
            yield from _parts(f"{place}/{index}", inner)
