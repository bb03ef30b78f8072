"""vLLM's engine as a child process of its worker: its output in a file of its own, and its death as a sentence.

vLLM runs the model in a process of its own and says of its death only that there was one; calls that were waiting for
an answer then wait for ever. Here every call also waits for the process's end, and the end is told with the signal or
status, what the engine did, and its last lines. Training and serving start their engines here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from troupe.engines.trial import settle_engine
from troupe.errors import TroupeError, WorkerError
from troupe.processes.deaths import describe_death, last_lines, quote_lines
from troupe.processes.logs import ENGINE_SUFFIX
from troupe.processes.stacks import describe_process, end_processes
from troupe.processes.subprocesses import end_with_us

T = TypeVar("T")

STATUS_WITHIN_S = 3.0
"""Seconds until a process whose end was seen has an exit status; vLLM's own monitor may collect it first."""
FAILED_BY_DEATH_S = 1.0
"""Seconds after a failed call in which the engine's end counts as its cause."""


class EngineProcess:
    """An AsyncLLM and the processes behind it."""

    def __init__(self, name: str) -> None:
        """Prepare a child process; `name` is its name in errors: "generator rank 0's engine"."""
        self.name = name
        self.log = own_log_path().with_suffix(ENGINE_SUFFIX)
        self._doing: list[str] = []
        self._did: list[str] = []
        """What it was doing when it died."""
        self._processes: list[BaseProcess] = []

    def start(self, arguments: Any) -> Any:
        """Start the engine and return its AsyncLLM; call it on the running event loop.

        A WorkerError explains why it did not come up.
        """
        settle_engine("bf16" if arguments.dtype == "bfloat16" else "fp32")
        from vllm.v1.engine.async_llm import AsyncLLM

        # A process that dies of a signal writes its Python stack first.
        os.environ.setdefault("PYTHONFAULTHANDLER", "1")
        try:
            with output_to(self.log):
                llm = AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            raise self._not_started(error) from None
        self.watch(llm.engine_core.resources.engine_manager.processes)
        return llm

    def watch(self, processes: Iterable[BaseProcess]) -> None:
        """Let calls end with any of the engine's processes; call it on the running event loop."""
        self._processes = list(processes)
        # vLLM's engine does not notice that its worker was killed, and would keep its memory for ever.
        self._reaper = end_with_us([process.pid for process in self._processes if process.pid is not None])
        self._left = len(self._processes)
        self._died = asyncio.Event()
        loop = asyncio.get_running_loop()
        for process in self._processes:
            loop.add_reader(process.sentinel, self._end_seen, process.sentinel)

    def _end_seen(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self._left -= 1
        if not self._left:  # their numbers may soon be those of others
            self._reaper.kill()
        if not self._died.is_set():
            self._did = list(self._doing)
            self._died.set()

    async def run(self, doing: str, call: Awaitable[T]) -> T:
        """Return what `call` returns.

        Raises a WorkerError as soon as the engine's process ends, which `doing` completes: "sampling 64 answers".
        """
        self._doing.append(doing)
        work = asyncio.ensure_future(call)
        death: asyncio.Task[Any] = asyncio.ensure_future(self._died.wait())
        try:
            await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() or (work.exception() is not None and await self._is_cause(work, death)):
                raise await self._death()
            return work.result()
        finally:
            self._doing.remove(doing)
            for task in (work, death):
                task.cancel()

    async def require_reply(self, asked: Awaitable[Any], within_s: float) -> None:
        """Wait for an answer that takes an engine no time. One that is late is ended with all below it, since it may be
        stopped, and is a WorkerError with their stacks.
        """
        try:
            await asyncio.wait_for(self.run("answering", asked), within_s)
        except TimeoutError:
            pids = [process.pid for process in self._processes if process.pid is not None]
            stacks = [line for pid in pids for line in await asyncio.to_thread(describe_process, pid)]
            end_processes(pids)
            raise WorkerError(
                f"{self.name} gave no sign of life within {within_s:g} s and is ended", details="\n".join(stacks)
            ) from None

    async def _is_cause(self, work: asyncio.Future[Any], death: asyncio.Task[Any]) -> bool:
        """Return whether a call failed because the engine died, which vLLM or a broken connection may show before its
        end is seen.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        await asyncio.wait([death], timeout=FAILED_BY_DEATH_S)
        return death.done() or isinstance(work.exception(), EngineDeadError)

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self._died.is_set()

    async def _death(self) -> WorkerError:
        deadline = time.monotonic() + STATUS_WITHIN_S
        while (ended := self._ended()) is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        pid, status = ended if ended is not None else (0, None)
        doing = " and ".join(dict.fromkeys(self._did if self._died.is_set() else self._doing))
        doing = f"it was {doing or 'idle'}"
        return self._error(status, doing, pid)

    def _ended(self) -> tuple[int, int] | None:
        return next(((p.pid or 0, p.exitcode) for p in self._processes if p.exitcode is not None), None)

    def _not_started(self, error: Exception) -> TroupeError:
        """Return vLLM's error at its start with the engine's own words.

        It lists exit statuses as {'EngineCore': -4}, or nothing where it looked before there was one.
        """
        if "Engine core initialization failed" in str(error):
            found = re.search(r"'EngineCore[^']*': (-?\d+)", str(error))
            return self._error(int(found.group(1)) if found else None, "it started", 0)
        words = f"{self.name} did not start: {type(error).__name__}: {error}"
        return WorkerError(words, details=quote_lines(last_lines(self.log), "its last lines:"))

    def _error(self, status: int | None, doing: str, pid: int) -> WorkerError:
        tail = last_lines(self.log)
        name = f"{self.name} (process {pid})" if pid else self.name
        return WorkerError(
            describe_death(name, status, doing=doing, tail=tail, pid=pid), details=quote_lines(tail, "its last lines:")
        )


def own_log_path() -> Path:
    """Return the file that holds this process's stderr; where it is no file, one in the temporary directory."""
    with contextlib.suppress(OSError):
        path = Path(os.readlink("/proc/self/fd/2"))
        if path.is_file():
            return path
    return Path(tempfile.gettempdir()) / f"troupe-{os.getpid()}.err"


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Let what this process and its new children print go to `path`; children keep it when the block has ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(kept, start=1):
            os.dup2(saved, number)
            os.close(saved)
        os.close(file)
