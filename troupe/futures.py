"""Futures put together: `then` goes on from a result, `all_of` waits for several; neither blocks a thread."""

from __future__ import annotations

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
