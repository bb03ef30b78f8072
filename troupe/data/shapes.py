"""The shapes in which data sets are passed around, by name: which columns show one, and how it becomes plain columns.

`troupe.data.mapping` reads the plain columns: a prompt of text or messages, a gold answer, a pair of sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from troupe.config.own_data import Format, MappedConfig
from troupe.data.dataset import Dropped
from troupe.data.lines import Row, field_of, text_of
from troupe.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One shape: what it is called for people, the fields that it sets, and how its rows are rewritten."""

    title: str
    columns: frozenset[str]
    """Columns that every row of it has; those of the first row decide."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Settings of `MappedConfig`."""
    rewrite: Callable[[Row, str], Row | Dropped] = lambda row, where: row


ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Speakers of ShareGPT's many relatives -> our roles."""


def _from_sharegpt(row: Row, where: str) -> Row:
    turns = field_of(row, "conversations", where)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: field 'conversations' must be a list of turns, not empty, got {turns!r:.60}")
    messages = [_sharegpt_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, start=1)]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    return {name: value for name, value in row.items() if name not in ("conversations", "system")} | {
        "messages": messages
    }


def _sharegpt_turn(turn: Any, where: str) -> dict[str, Any]:
    if isinstance(turn, Mapping) and "role" in turn:  # under ShareGPT's name for the column, in OpenAI's form
        return dict(turn)
    speaker = turn.get("from") if isinstance(turn, Mapping) else None
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise DataError(f"{where} of 'conversations' needs `from` ({', '.join(ROLES)}) and `value`, got {turn!r:.60}")
    if speaker != "function_call":
        return {"role": ROLES[speaker], "content": turn.get("value")}
    try:
        calls = json.loads(turn.get("value"))
    except (TypeError, ValueError, RecursionError):
        raise DataError(f"{where} of 'conversations' is a function_call that is no JSON: {turn!r:.60}") from None
    return {"role": "assistant", "content": None, "tool_calls": calls if isinstance(calls, list) else [calls]}


def _from_alpaca(row: Row, where: str) -> Row:
    instruction, given = text_of(row, "instruction", where), row.get("input") or ""
    if not isinstance(given, str):
        raise DataError(f"{where}: field 'input' must be a text, or empty, got {given!r:.60}")
    plain = {name: value for name, value in row.items() if name not in ("instruction", "input")}
    return {**plain, "prompt": f"{instruction}\n\n{given}" if given.strip() else instruction}


PAIR = {"chosen_field": "chosen", "rejected_field": "rejected"}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def hh_messages(text: Any, name: str, where: str) -> list[dict[str, Any]]:
    r"""Return the turns of a dialogue as hh-rlhf writes it.

    >>> hh_messages("\n\nHuman: 2+2?\n\nAssistant: 4", "chosen", "line 1")
    [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]
    """
    head, *parts = HH_TURN.split(text) if isinstance(text, str) else ["?"]
    if head.strip() or not parts:
        raise DataError(f"{where}: field {name!r} must be a dialogue that begins with '\\n\\nHuman:', got {text!r:.60}")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": HH_ROLES[speaker], "content": said.strip()} for speaker, said in turns]


def _from_hh(row: Row, where: str) -> Row | Dropped:
    sides = {name: hh_messages(field_of(row, name, where), name, where) for name in PAIR.values()}
    if any(turns[-1]["role"] != "assistant" or not turns[-1]["content"] for turns in sides.values()):
        return Dropped("empty_answers")  # the published files have some
    return {**row, **sides}


BETTER = {**PAIR, "demonstration_field": "chosen"}
"""A pair whose better side is also what supervised training imitates."""

SHAPES: dict[Format, Shape] = {
    "hh": Shape(title="hh-rlhf", columns=frozenset(PAIR.values()), fields=BETTER, rewrite=_from_hh),
    "pairs": Shape(title="pairs of answers", columns=frozenset(PAIR.values()), fields=BETTER),
    "sharegpt": Shape(
        title="ShareGPT",
        columns=frozenset({"conversations"}),
        fields={"prompt_field": "messages"},
        rewrite=_from_sharegpt,
    ),
    "alpaca": Shape(
        title="Alpaca",
        columns=frozenset({"instruction", "output"}),
        fields={"gold_field": "output"},
        rewrite=_from_alpaca,
    ),
    "completion": Shape(
        title="prompt and completion", columns=frozenset({"prompt", "completion"}), fields={"gold_field": "completion"}
    ),
    "messages": Shape(title="messages", columns=frozenset({"messages"}), fields={"prompt_field": "messages"}),
    "fields": Shape(title="named fields", columns=frozenset()),
}


def shape_of(config: MappedConfig, row: Row) -> Format:
    """Return the shape that a config names, or that the first row of its data shows.

    A recipe that names a field of the prompt or of an answer is followed, whatever the columns are called.
    """
    if config.format != "auto":
        return config.format
    named = {name for shape in SHAPES.values() for name in shape.fields} | {"prompt_field", "answers_field"}
    if config.model_fields_set & named:
        return "fields"
    for name, shape in SHAPES.items():
        is_hh = isinstance(row.get("chosen"), str) and HH_TURN.match(row["chosen"]) is not None
        if shape.columns <= row.keys() and (name != "hh" or is_hh) and (name != "messages" or "prompt" not in row):
            return name
    return "fields"
