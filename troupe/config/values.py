"""What a value can be at all: text that can be written down, numbers within reason, paths that name a place.

The rules go by a field's name, so that a new `timeout_s` or `output` has them too. The field's own type and bounds come
on top.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

YEAR_S = 366 * 24 * 3600
LARGEST = 10**12
"""Of a number whose field is not named below."""
LIMITS: dict[str, tuple[float, float]] = {
    "learning_rate": (0, 1),  # AdamW moves every weight by about this much in a step
    "temperature": (0, 100),  # at 100 a token is all but drawn by lot
    "seed": (0, 2**63 - 1),  # what torch, numpy and vLLM all take
    "_s": (0, YEAR_S),
    "num_ranks": (1, 10_000),
    "num_engines": (1, 10_000),
    "num_workers": (0, 10_000),
    "tensor_parallel_size": (1, 1_000),
    "_replicas": (1, 10_000),
    "max_length": (1, 10**8),
    "row_tokens": (1, 10**8),
    "max_prompt_tokens": (1, 10**8),
    "max_response_tokens": (1, 10**8),
}
"""A field's name, or how it ends -> the least and the most that mean anything."""
PATHS = re.compile(
    "(.*_)?(path|directory|output|cache|file)|roots|model|models|base|trained|follow|tokenizer|base_model|reward_model"
    "|demonstrations|against|contexts|adapters|recipe|jobs|url|upload|push"
)
"""Names of fields that hold a path, an address, or a model's name."""
UNREADABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
FOR_THE_SHELL = re.compile(r"\$\(|`|\$(?!\{oc\.)|^~")
"""What a shell replaces, unless it was in quotes; `${oc.env:NAME}` is ours."""


def check_value(field: str, value: Any) -> None:
    """Raise ValueError for a value that no field of this name can have, however deep it stands."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"names are text, and {key!r} is not; put it in quotes")
            check_value(field, inner) if PATHS.fullmatch(field) else _check_inner(key, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_value(field, inner)
    elif isinstance(value, str):
        _check_text(field, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(field, value)
    elif isinstance(value, bytes):
        raise ValueError("it is binary; write text")


def _check_inner(name: str, value: Any) -> None:
    """Check what stands in a section of any names, whose numbers have no known limit."""
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return
    check_value("", value)
    _check_text("", name)


def _check_number(field: str, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is needed")
    low, high = next((limits for name, limits in LIMITS.items() if field.endswith(name)), (-LARGEST, LARGEST))
    if not low <= value <= high:
        raise ValueError(f"it must be between {low:,} and {high:,}")


def _check_text(field: str, value: str) -> None:
    found = UNREADABLE.search(value)
    if found:
        raise ValueError(f"the character U+{ord(found[0]):04X} cannot stand in a text; leave it out")
    if not PATHS.fullmatch(field):
        return
    if not value.strip() or value != value.strip() or "\n" in value or "\t" in value:
        raise ValueError(f"{value!r} names no place: it is blank, or begins or ends with a space, or has line breaks")
    if FOR_THE_SHELL.search(value):
        raise ValueError(
            f"{value!r} holds what a shell should have replaced; use double quotes, or none, or write it out"
        )
