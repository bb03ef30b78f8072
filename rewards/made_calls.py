"""The requests that a judgement took: endpoints note them, a block collects them, for the log of calls.

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
    """Return the list that fills with the calls that the block makes."""
    calls: list[JudgeCall] = []
    token = _made.set(calls)
    try:
        yield calls
    finally:
        _made.reset(token)


def note_call(*made: JudgeCall) -> None:
    """Add calls to the list of the block that collects, if there is one."""
    calls = _made.get()
    if calls is not None:
        calls.extend(made)
