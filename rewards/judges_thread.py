"""The one background thread on which remote judges live, so that what they hold outlasts the event loops of their callers."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def on_judges_thread(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run it on the one thread that all endpoints share, whose loop outlasts those of the callers."""
    return asyncio.run_coroutine_threadsafe(coroutine, _judges_loop())


_starting = threading.Lock()


def _judges_loop() -> asyncio.AbstractEventLoop:
    with _starting:  # two threads might ask for the first time at once
        return _started_loop()


@functools.cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="judges", daemon=True).start()
    return loop
