"""What every data set hands over: training samples and held-out samples under one name, and what was left out.

The loaders beside this file build it; `data.load_data` checks it. The order of training is `data.stream`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from core.records import Message, Sample

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Samples of one data set; the names of metrics such as `eval/<name>/accuracy` come from here.

    Example: `DataSet(name="tldr_comparisons", train=[89,000 samples], heldout=[5000 samples],
    dropped={"short_answers": 3200, "equal_answers": 41})`.
    """

    name: str
    train: Sequence[Sample]
    heldout: Sequence[Sample]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows that a filter left out, of both sides together, by reason; a row that no filter saw is not counted."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """In place of a sample: a row that a filter leaves out, and the name under which it is counted."""

    reason: str


def conversation(user: str, *, system: str | None = None) -> list[Message]:
    """A prompt of one user turn, behind a system message if there is one."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": user}]


def lasting_order(items: Iterable[Item], purpose: str, name: Callable[[Item], str]) -> list[Item]:
    """`items` in an order drawn from `purpose` (with the seed in it) and from each one's name alone.

    Another item coming or going moves none of the others, as a shuffle would: a package installed later leaves the
    split of the installed ones as it was.
    """
    return sorted(items, key=lambda item: hashlib.sha256(f"{purpose}/{name(item)}".encode()).digest())


def shorten(text: str, max_chars: int) -> str:
    """The beginning of `text`, cut at a line's end, or between words where that would lose more than half of it.

    >>> shorten("one two\\nthree four", 12)
    'one two'
    >>> shorten("one two three", 8)
    'one two'
    """
    if len(text) <= max_chars:
        return text
    head = text[: max_chars + 1]
    for separator in ("\n", " "):
        cut = head.rfind(separator)
        if 2 * cut >= max_chars:
            return head[:cut].rstrip()
    return text[:max_chars].rstrip()
