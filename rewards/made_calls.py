"""Which requests a judgement took: endpoints note them, whoever collects has them, for the log of calls.

A context variable and not an argument, because rewards of users stand in between. It follows the tasks of asyncio, also
onto the judges' thread; a question that two ask at once is noted for the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from troupe.records import JudgeCall

_made: ContextVar[list[JudgeCall] | None] = ContextVar("made_calls", default=None)


@contextlib.contextmanager
def collected_calls() -> Iterator[list[JudgeCall]]:
    """The list that fills with the calls that the block makes."""
    calls: list[JudgeCall] = []
    token = _made.set(calls)
    try:
        yield calls
    finally:
        _made.reset(token)


def note_call(call: JudgeCall) -> None:
    """Add a call to the list of whoever collects, if anybody does."""
    calls = _made.get()
    if calls is not None:
        calls.append(call)
