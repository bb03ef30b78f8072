"""Calls in processes that can be killed, for code that may hang, crash, or take all memory: a user's, a library's.

The processes are pebble's, forked from one that has the wanted modules loaded and no thread of this program. A call
that lasts too long loses its process and nothing else; the next one gets another.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import forkserver
from typing import Any

from pebble import ProcessExpired, ProcessPool

from troupe.processes.deaths import describe_exit

log = logging.getLogger(__name__)

MEMORY_GIB = 4.0
"""Private memory that a process may take unless its owner sets another bound."""
ATTEMPTS = 3
"""Times that a call is handed to a new pool where its pool broke before the call began."""
GIVEN_UP = "was given up"
PR_SET_PDEATHSIG = 1
CONTEXT = multiprocessing.get_context("forkserver")


class CallLost(Exception):
    """A call without a result, and why: "took longer than 30 s", "was ended by SIGSEGV (...)"."""


class CallPool:
    """Processes that run calls, started at the first one.

    Example: `CallPool(2).submit(math.factorial, 20, timeout_s=5).result()`.
    """

    def __init__(
        self,
        size: int,
        *,
        memory_gib: float = MEMORY_GIB,
        prepare: Callable[[], object] | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        """Describe `size` processes: `prepare`, a function of a module, runs in each before its first call, outside of
        any call's time; `modules` are loaded in the one that they are forked from.
        """
        self._size, self._modules = size, modules
        self._initargs = (int(memory_gib * 2**30), prepare)
        self._pool: ProcessPool | None = None
        self._waiting: set[Future[Any]] = set()

    def submit(self, call: Callable[..., Any], *args: Any, timeout_s: float | None = None) -> Future[Any]:
        """Start `call`, a function of a module. The future raises what it raised, or CallLost."""
        answer: Future[Any] = Future()
        self._waiting.add(answer)
        answer.add_done_callback(self._waiting.discard)
        self._schedule(answer, ATTEMPTS, timeout_s, call, args)
        return answer

    def close(self) -> None:
        """End the processes, also in the middle of calls; idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()
        for answer in list(self._waiting):  # pebble leaves its own unanswered
            with contextlib.suppress(InvalidStateError):
                answer.set_exception(CallLost(GIVEN_UP))

    def _schedule(self, answer: Future[Any], attempts: int, timeout_s: float | None, call: Any, args: Any) -> None:
        asked = self._running().schedule(call, args=args, timeout=timeout_s)
        again = partial(self._schedule, answer, attempts - 1, timeout_s, call, args) if attempts > 1 else None
        asked.add_done_callback(partial(self._settle, answer, timeout_s, again))

    def _running(self) -> ProcessPool:
        if self._pool is None or not self._pool.active:  # pebble gives a pool up whose idle process was killed
            CONTEXT.set_forkserver_preload(["troupe.processes.call_worker", *self._modules])
            self._pool = ProcessPool(
                max_workers=self._size, initializer=_begin, initargs=self._initargs, context=CONTEXT
            )
        return self._pool

    def _settle(
        self, answer: Future[Any], timeout_s: float | None, again: Callable[[], None] | None, asked: Future[Any]
    ) -> None:
        error = asked.exception() if not asked.cancelled() else CallLost(GIVEN_UP)
        if isinstance(error, BrokenProcessPool) and again is not None:
            again()
            return
        with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
            if error is None:
                answer.set_result(asked.result())
            else:
                answer.set_exception(_describe(error, timeout_s))


def _describe(error: BaseException, timeout_s: float | None) -> BaseException:
    """Return what happened to a call as CallLost; what the call itself raised as it is."""
    if isinstance(error, ProcessExpired):
        return CallLost(describe_exit(error.exitcode))
    if isinstance(error, TimeoutError) and error.args[:1] == ("Task timeout",):
        return CallLost(f"took longer than {timeout_s:g} s")
    if isinstance(error, MemoryError):
        return CallLost("took more memory than its process may have")
    if isinstance(error, BrokenProcessPool):
        return CallLost(f"found no process to run in ({error})")
    return error


def _begin(memory_bytes: int, prepare: Callable[[], object] | None) -> None:
    """Bound the process that this runs in, and make it end with its parent and at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The process that forked this one ends with the program, unless what it forked holds the pipe between the two open.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Private memory alone: mapped files and reserved addresses, of which torch has many, do not count.
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    bound = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if prepare is not None:
        prepare()
