"""The one background thread of remote judges, so that what they hold outlasts the event loops of their callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def on_judges_thread(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run the coroutine on the thread that all endpoints share; the first call starts it."""
    with _starting:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            threading.Thread(target=_loops[0].run_forever, name="judges", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _loops[0])
