"""Rows that a recipe leaves out: by the words, the size or the value of a field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from troupe.config.own_data import RowFilterConfig
from troupe.data.lines import Row, field_of
from troupe.errors import DataError


def left_out(row: Row, filters: Sequence[RowFilterConfig], where: str) -> str | None:
    """Return the name under which a row is counted that one of the filters leaves out; None for one that stays."""
    for bounds in filters:
        value = field_of(row, bounds.field, where)
        words = len(text_in(value).split())
        if bounds.min_words is not None and words < bounds.min_words:
            return f"short_{bounds.field}"
        if bounds.max_words is not None and words > bounds.max_words:
            return f"long_{bounds.field}"
        if bounds.one_of is not None and value not in bounds.one_of:
            return f"other_{bounds.field}"
        if bounds.at_least is None and bounds.at_most is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise DataError(
                f"{where}: field {bounds.field!r} must be a number for at_least and at_most, got {value!r:.60}"
            )
        if bounds.at_least is not None and value < bounds.at_least:
            return f"low_{bounds.field}"
        if bounds.at_most is not None and value > bounds.at_most:
            return f"high_{bounds.field}"
    return None


def text_in(value: Any) -> str:
    """Return the words of a field: a text, the turns of a chat, the texts of a list or of a mapping.

    Of anything else none.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return text_in(value["content"]) if "role" in value and "content" in value else text_in(list(value.values()))
    if isinstance(value, list | tuple):
        return "\n".join(text for part in value if (text := text_in(part)))
    return ""
