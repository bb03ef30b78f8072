"""Futures put together: `then` goes on from a result, `all_of` waits for several; `run_aside` waits for a function.

None of them blocks a thread that others use.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


def then(future: Future[T], go_on: Callable[[T], U | Future[U]]) -> Future[U]:
    """Return the future of what `go_on` makes of the result, or of the future that it returns; errors pass through.

    `go_on` runs on the thread that completes `future`, and must not wait.
    """
    answer: Future[U] = Future()

    def forward(done: Future[U]) -> None:
        error = done.exception()
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(done.result())

    def take(done: Future[T]) -> None:
        try:
            made = go_on(done.result())
        except BaseException as error:
            answer.set_exception(error)
        else:
            if isinstance(made, Future):
                made.add_done_callback(forward)
            else:
                answer.set_result(made)

    future.add_done_callback(take)
    return answer


def all_of(futures: Sequence[Future[Any]]) -> Future[list[Any]]:
    """Return the future of every result in order, once the last one is there, or of the list's first failure."""
    answer: Future[list[Any]] = Future()
    lock, waiting = threading.Lock(), len(futures)

    def count(_: Future[Any]) -> None:
        nonlocal waiting
        with lock:
            waiting -= 1
            if waiting:
                return
        error = next((error for future in futures if (error := future.exception()) is not None), None)
        if error is None:
            answer.set_result([future.result() for future in futures])
        else:
            answer.set_exception(error)

    for future in futures:
        future.add_done_callback(count)
    return answer


async def run_aside(call: Callable[[], T], *, name: str) -> T:
    """Run `call` in a daemon thread: unlike an executor's, one that never returns keeps no process from ending."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(settle: Callable[[Any], None], value: Any) -> None:
        if not outcome.done():  # it is done when the time is up
            settle(value)

    def run() -> None:
        try:
            settle, value = outcome.set_result, call()
        except Exception as error:
            settle, value = outcome.set_exception, error  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop ended before us
            loop.call_soon_threadsafe(deliver, settle, value)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await outcome
