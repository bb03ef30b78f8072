"""Futures: `then` goes on from a result, `all_of` from several, without blocking; `wait_all` waits, to a deadline;
`run_aside` has a function called in a thread, `contained` awaits code that nobody here has read.

No other module waits for another process (`tests/test_layering.py`), so that every wait ends, and ends with a name.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

LOOK_S = 0.2

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


def wait_all(
    futures: Sequence[Future[T]],
    timeout_s: float,
    *,
    late: Callable[[list[int]], BaseException],
    cause: Callable[[BaseException], BaseException] = lambda error: error,
    look: Callable[[], None] | None = None,
) -> list[T]:
    """Return the results in order; raise the first failure at once, as `cause` explains it.

    Past `timeout_s` raise what `late` makes of the positions of the futures that are not done. `look` is called now and
    then and raises where waiting has become pointless.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        first = concurrent.futures.FIRST_EXCEPTION
        done, waiting = concurrent.futures.wait(futures, left_s if look is None else min(LOOK_S, left_s), first)
        for future in futures:
            if future in done and (error := future.exception()) is not None:
                raise cause(error) from None
        if not waiting:
            return [future.result() for future in futures]
        if time.monotonic() >= deadline:
            raise late([position for position, future in enumerate(futures) if future in waiting])
        if look is not None:
            look()


def those_done(futures: Sequence[Future[T]], timeout_s: float, *, until_failure: bool = False) -> dict[int, Future[T]]:
    """Return, by position, the futures that are done within `timeout_s`; a failure ends the wait `until_failure`."""
    when = concurrent.futures.FIRST_EXCEPTION if until_failure else concurrent.futures.ALL_COMPLETED
    done, _ = concurrent.futures.wait(futures, timeout_s, when)
    return {position: future for position, future in enumerate(futures) if future in done}


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
        except BaseException as error:
            settle, value = outcome.set_exception, _takeable(error)  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop ended before us
            loop.call_soon_threadsafe(deliver, settle, value)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await outcome


async def contained(call: Awaitable[T]) -> T:
    """Return what a user's call gives; RuntimeError where it would end more than itself: the event loop, as SystemExit
    does, or what waits beside it, by a cancellation that is not ours.
    """
    try:
        return await call
    except (SystemExit, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise RuntimeError(f"it raised {error!r}") from error


def _takeable(error: BaseException) -> Exception:
    """Return the error, or one that names it: a future takes no StopIteration, and SystemExit would end the loop."""
    plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
    return error if plain else RuntimeError(f"it raised {error!r}")  # type: ignore[return-value]
