"""Groups of workers: one method call fans out to every rank, and answers come back as futures.

`RayWorkers` runs each rank as a Ray actor, `InlineWorkers` runs the same classes in this process for tests and
debugging. A remote call is written with the method itself, never its name in a string, so readers can follow it and
checkers can check it. The only `ray.remote` of the project is here.

A failure arrives as one of ours, whichever way a caller waits: what a worker raised for the user as it is, its death as
a WorkerError, anything else as a WorkerBug. Ray's own errors stay here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from troupe.errors import SyncError, TroupeError, WorkerBug, WorkerError, first_line
from troupe.hardware import WORKER_ROLE
from troupe.processes.deaths import describe_death, find_remedy, last_exception, last_lines, quote_lines
from troupe.processes.futures import those_done, wait_all
from troupe.processes.logs import ENGINE_SUFFIX, ProcessLogs
from troupe.processes.stacks import describe_process, end_processes, end_trees, tree_of
from troupe.processes.waiting import waiting
from troupe.secrets import without_escapes
from troupe.timeline import RECORDER, TRACK, Entry

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

DEATH_IS_KNOWN_S = 10.0
"""Seconds after a failed call until the death of a peer that caused it is known."""
KILLING_S = 2.0
"""Seconds that Ray has to end a worker by itself. Of one that we end first it tells the user as of a crash."""
PRIVATE = "troupe-"
"""Name, before its driver's process id, of the directory in the temporary one that a run has for itself."""
ENGINE = "engine"
"""Part of the name of an engine's log, beside its worker's."""

log = logging.getLogger(__name__)

W = TypeVar("W")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that workers are waited for where a call names no other limit: `placement` of the config."""

    call_s: float = 3600.0
    """For the answer to a call."""
    reply_s: float = DEATH_IS_KNOWN_S
    """For a sign of life, last lines, stacks, spans."""


class Workers(ABC, Generic[W]):
    """Workers of class W with ranks 0 .. size - 1."""

    role: str
    size: int
    deadlines: Deadlines = Deadlines()
    restarts: int = 0
    """Times that Ray starts a rank again by itself and repeats its calls."""

    @abstractmethod
    def submit(
        self, rank: int, method: Callable[Concatenate[W, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Future[Any]:
        """Start `method` on one rank; the future holds its answer or its error."""

    @abstractmethod
    def shutdown(self) -> None:
        """End the workers; idempotent."""

    def call(self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Return the answers of every rank to the same call."""
        return self.gather(self.start(method, *args, **kwargs))

    def start(self, method: Callable[Concatenate[W, P], Any], *args: P.args, **kwargs: P.kwargs) -> list[Future[Any]]:
        """Start the same call on every rank."""
        return [self.submit(rank, method, *args, **kwargs) for rank in range(self.size)]

    def scatter(self, method: Callable[..., R], shards: Sequence[Any], **common: Any) -> list[R]:
        """Return the answers of every rank to its own shard; `common` keyword arguments go to all."""
        if len(shards) != self.size:
            raise ValueError(f"{self.role}: {len(shards)} shards for {self.size} ranks")
        return self.gather([self.submit(rank, method, shard, **common) for rank, shard in enumerate(shards)])

    def gather(self, futures: Sequence[Future[Any]], timeout_s: float | None = None, phase: str = "") -> list[Any]:
        """Results in order. The first failure is raised at once, though other ranks may still wait for the failed
        one; past `timeout_s` a WorkerError names the ranks that have not answered, with what they are doing."""
        limit_s = self.deadlines.call_s if timeout_s is None else timeout_s

        def late(positions: list[int]) -> WorkerError:
            ranks = [getattr(futures[position], "rank", position) for position in positions]
            return self.late(sorted(set(ranks)), phase or "its call", limit_s)

        with waiting(f"{self.role}: {phase}" if phase else self.role):
            try:
                return wait_all(futures, limit_s, late=late, cause=self.first_cause)
            except WorkerError as error:
                if not self.restarts or error.role != self.role:
                    raise
                log.warning("%s; it is ended, and Ray starts it again and repeats its calls", error)
                self.end_processes(error.ranks)
                return wait_all(futures, limit_s, late=late, cause=self.first_cause)

    def late(self, ranks: Sequence[int], phase: str, waited_s: float) -> WorkerError:
        """Return the error of ranks that did not do something in time; its details have their stacks."""
        return WorkerError(
            f"{self.role} rank {list(ranks)} did not finish {phase} within {waited_s:.0f} s",
            details="\n".join(self.describe(ranks)),
            role=self.role,
            ranks=ranks,
        )

    def describe(self, ranks: Sequence[int]) -> list[str]:
        """Return lines on what the processes of ranks are doing, and their stacks."""
        return []

    def end_processes(self, ranks: Iterable[int]) -> None:
        """End the processes of ranks, and those below them, which may be stopped and deaf to Ray."""

    def restart(self, ranks: Iterable[int]) -> None:
        """Start ranks again from nothing where they were, however stuck they are."""
        raise WorkerError(f"{self.role} runs in this process and cannot be started again", role=self.role)

    def first_cause(self, error: BaseException) -> BaseException:
        """Return the error that a failed call should raise: that of a peer whose death made it fail, if any."""
        return error

    def spans(self, since_ns: int) -> list[Entry]:
        """Return what the ranks did in their processes after `since_ns`; nothing of one that does not answer soon."""
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The place of a rank: a bundle of a placement group, and what it takes of it."""

    placement_group: PlacementGroup | None = None
    bundle: int = 0
    num_gpus: float = 0.0
    env: dict[str, str] = field(default_factory=dict)


class RayWorkers(Workers[W]):
    """Each rank is a Ray actor, placed by its slot. Picklable: workers may call the ranks of another group."""

    def __init__(
        self,
        worker_cls: Callable[..., W],
        arguments: Sequence[dict[str, Any]],
        *,
        role: str,
        slots: Sequence[Slot],
        max_concurrency: int = 1,
        logs: ProcessLogs | None = None,
        deadlines: Deadlines = Deadlines(),
        restarts: int = 0,
    ) -> None:
        """Start a worker per rank; `arguments` holds each rank's constructor arguments, `logs` keeps what the workers
        print. Returns at once; the first call waits for the start. Ray starts a rank whose constructor is all its state
        again, `restarts` times, and repeats the calls that it was in.
        """
        self.role, self.size, self.logs, self.deadlines = role, len(arguments), logs, deadlines
        self.restarts = restarts
        self.identities: dict[int, Identity] = {}
        self._worker_cls, self._arguments, self._slots = worker_cls, list(arguments), list(slots)
        self._max_concurrency = max_concurrency
        self.handles = [self._make(rank) for rank in range(self.size)]
        for rank in range(self.size):
            self._introduce(rank)

    def _make(self, rank: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        slot = self._slots[rank]
        strategy = (
            PlacementGroupSchedulingStrategy(slot.placement_group, placement_group_bundle_index=slot.bundle)
            if slot.placement_group is not None
            else "DEFAULT"
        )
        options = ray.remote(self._worker_cls).options(
            name=None,
            num_cpus=0,
            num_gpus=slot.num_gpus,
            max_concurrency=self._max_concurrency,
            max_restarts=self.restarts,
            max_task_retries=self.restarts,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": {WORKER_ROLE: f"{self.role}-{rank}", **slot.env}},
        )
        return options.remote(**self._arguments[rank])

    def _introduce(self, rank: int) -> None:
        asked = self.handles[rank].__ray_call__.remote(_identity).future()
        asked.add_done_callback(partial(self._introduced, rank))

    def _introduced(self, rank: int, asked: Future[Identity]) -> None:
        if asked.exception() is not None:
            return  # dead at its start, which the first call tells
        identity = self.identities[rank] = asked.result()
        if self.logs is not None and identity.address == own_address():
            stdout, stderr = Path(identity.stdout), Path(identity.stderr)
            self.logs.add(f"{self.role}-{rank}", stdout, stderr)
            self.logs.add(f"{self.role}-{rank}-{ENGINE}", stderr.with_suffix(ENGINE_SUFFIX))

    def submit(
        self, rank: int, method: Callable[Concatenate[W, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.rank = rank  # type: ignore[attr-defined]  # what a deadline names
        asked = getattr(self.handles[rank], method.__name__).remote(*args, **kwargs).future()
        asked.add_done_callback(partial(self._settle, answer, rank, method.__name__))
        return answer

    def _settle(self, answer: Future[Any], rank: int, method: str, asked: Future[Any]) -> None:
        error = asked.exception()
        if error is None:
            answer.set_result(asked.result())
        else:  # Ray calls back on a thread that must not wait for Ray
            _EXPLAINING.submit(self._explain, answer, rank, method, error)

    def _explain(self, answer: Future[Any], rank: int, method: str, error: BaseException) -> None:
        try:
            answer.set_exception(self._translate(error, rank, method))
        except BaseException as failure:  # an answer must come, whatever happens here
            answer.set_exception(failure)

    def spans(self, since_ns: int) -> list[Entry]:
        asked = [handle.__ray_call__.remote(_spans, since_ns).future() for handle in self.handles]
        return [
            replace(entry, track=f"{self.role} {rank}")
            for rank, future in those_done(asked, self.deadlines.reply_s).items()
            if future.exception() is None
            for entry in future.result()
        ]

    def shutdown(self) -> None:
        import ray

        self.restarts = 0
        here = [identity.pid for identity in self.identities.values() if identity.address == own_address()]
        trees = [tree_of(pid) for pid in here]  # now: whose parent is gone cannot be found
        for handle in self.handles:
            ray.kill(handle)
        end_trees(trees, KILLING_S)
        self.end_processes(range(len(self.handles)))
        self.handles = []

    def end_processes(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            if (identity := self.identities.pop(rank, None)) is not None:
                self._there(identity, end_processes, [identity.pid])
                if self.restarts:  # Ray starts another one
                    self._introduce(rank)

    def restart(self, ranks: Iterable[int]) -> None:
        import ray

        for rank in ranks:
            self.end_processes([rank])
            ray.kill(self.handles[rank])
            self.handles[rank] = self._make(rank)
            self._introduce(rank)

    def describe(self, ranks: Sequence[int]) -> list[str]:
        lines = []
        for rank in ranks:
            identity = self.identities.get(rank)
            found = self._there(identity, describe_process, identity.pid) if identity is not None else None
            where = f" on {identity.address}" if identity is not None and identity.address != own_address() else ""
            lines += [
                quote_lines(
                    found or ["it never answered, so its process is not known"], f"{self.role} rank {rank}{where}:"
                )
            ]
        return lines

    def first_cause(self, error: BaseException) -> BaseException:
        """Return what explains an error: a rank fails in its collective because a peer died, which is known later, or
        does not answer."""
        if not isinstance(error, WorkerBug | SyncError) or self.size == 1:
            return error
        asked = [handle.__ray_call__.remote(_identity).future() for handle in self.handles]
        answered = those_done(asked, self.deadlines.reply_s, until_failure=True)
        failures = {rank: failure for rank, future in answered.items() if (failure := future.exception()) is not None}
        for rank, failure in failures.items():
            if isinstance(death := self._translate(failure, rank, ""), WorkerError):
                return death
        silent = [rank for rank in range(self.size) if rank not in answered]
        if not silent or failures:
            return error
        late = self.late(silent, "what its peers waited for, and answers nothing", self.deadlines.reply_s)
        late.args = (f"{late}; of the others: {first_line(error)}",)
        return late

    def _translate(self, error: BaseException, rank: int, method: str) -> BaseException:
        """Return a failure of Ray's as one of ours; `method` is what the worker was asked to do."""
        from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

        name = f"{self.role} rank {rank}"
        if isinstance(error, RayTaskError):
            if isinstance(error.cause, TroupeError):
                if isinstance(error.cause, WorkerError) and not error.cause.role:  # its engine's death, say
                    error.cause.role, error.cause.ranks = self.role, (rank,)
                return self._with_log(error.cause, rank)
            return self._with_log(_bug(name, method, error), rank)
        if isinstance(error, RayActorError):
            return self._with_log(self._death(name, method, str(error), rank), rank)
        if isinstance(error, OutOfMemoryError):
            death = memory_death(name, method, str(error))
            death.role, death.ranks = self.role, (rank,)
            return self._with_log(death, rank)
        if isinstance(error, ObjectLostError):  # a large answer stays where it was made until it is fetched
            lost = f"{name} died with its machine, and so is its answer to `{method}`: {first_line(error)}"
            return WorkerError(lost, role=self.role, ranks=[rank])
        if isinstance(error, RayError):
            return self._with_log(_bug(name, method, error), rank)
        return error

    def _death(self, name: str, method: str, text: str, rank: int) -> WorkerError:
        """Ray's text on a dead actor, with the process's own last lines."""
        if "creation task" in text:  # its constructor raised: the traceback's last line says what
            lines = [line for line in text.splitlines() if line.strip()]
            raised = last_exception(lines) or lines[-1].strip()
            details = quote_lines(lines[-20:], "its traceback:")
            return WorkerError(f"{name} died at its start: {raised}", details=details, role=self.role, ranks=[rank])
        if "ray.kill" in text:
            return WorkerError(f"{name} died: it was ended by this run (ray.kill)", role=self.role, ranks=[rank])
        if "its node has died" in text:
            where = f" {self.identities[rank].address}" if rank in self.identities else ""
            return WorkerError(f"{name} died with its machine{where}, which is lost", role=self.role, ranks=[rank])
        found = re.search(r"pid: (\d+)", text)
        pid = int(found.group(1)) if found else 0
        tail = self._last_lines(rank, pid)
        status = re.search(r"exit code (\d+)", text)
        doing = f"it ran `{method}`" if method else ""
        process = f"{name} died: its process {pid or ''}".rstrip()
        sentence = describe_death(process, int(status.group(1)) if status else None, doing=doing, tail=tail, pid=pid)
        return WorkerError(sentence, details=quote_lines(tail, "its last lines:"), role=self.role, ranks=[rank])

    def _last_lines(self, rank: int, pid: int) -> list[str]:
        """Return the last lines of a dead worker's stderr, also from another machine."""
        identity = self.identities.get(rank)
        return self._there(identity, _tail_of, identity.stderr if identity is not None else None, pid) or []

    def _there(self, identity: Identity | None, function: Callable[..., T], *args: Any) -> T | None:
        """Return what a function returns on the machine of a process; None where the machine does not answer."""
        if identity is None or identity.address == own_address():
            return function(*args)
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node_id=identity.node, soft=False)
        asked = ray.remote(function).options(num_cpus=0, scheduling_strategy=there).remote(*args).future()
        answered = those_done([asked], self.deadlines.reply_s).values()
        return next((future.result() for future in answered if future.exception() is None), None)

    def _with_log(self, error: TroupeError, rank: int) -> TroupeError:
        """Return `error` with the path of the whole log, where this run keeps one."""
        if self.logs is None or rank not in self.identities or not isinstance(error, WorkerError | WorkerBug):
            return error
        self.logs.copy()
        paths = [self.logs.path(name) for name in (f"{self.role}-{rank}-{ENGINE}", f"{self.role}-{rank}")]
        path = next((path for path in paths if path.exists()), None)
        if path is not None and str(path) not in error.details:
            error.details = f"{error.details}\nwhole log: {path}".lstrip()
        return error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "logs": None, "_arguments": [], "_slots": []}


_EXPLAINING = ThreadPoolExecutor(1, thread_name_prefix="explain")
"""Where failures are explained: some reading of files, perhaps a call to another machine."""


def memory_death(name: str, method: str, text: str) -> WorkerError:
    """Ray's monitor kills a worker before the kernel would, and lists what holds the memory."""
    used = re.search(r"was ([\d.]+)GB used / ([\d.]+)GB", text)
    largest = re.search(r"Top \d+ memory users:.*?\n(.*?)\nRefer to", text, re.DOTALL)
    state = f" with {used[1]} of {used[2]} GB in use on its machine" if used else ""
    sentence = f"{name} died: Ray killed it for memory{state} while it ran `{method}`"
    holders = largest[1].splitlines() if largest else []
    details = quote_lines(holders, "who held the memory (process, GB, command):")
    return WorkerError(f"{sentence}; {find_remedy(['out of memory'])}", details=details)


def _bug(name: str, method: str, error: Any) -> WorkerBug:
    """Return what a worker raised that is not for the user, with its own traceback instead of Ray's."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\x1b[36mray::")]
    words = str(cause).strip().splitlines() or [""]
    first = words[0] if cause is not error else last_exception(lines) or words[-1]
    return WorkerBug(
        f"{name} failed in `{method}`: {type(cause).__name__}: {first}".rstrip(": "),
        details=quote_lines([without_escapes(line) for line in lines[-30:]], "its traceback:"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The process of a rank, as it introduced itself."""

    pid: int
    address: str
    node: str
    stdout: str
    stderr: str


def _identity(worker: object) -> Identity:
    """Runs in the worker's process, whatever class it has."""
    import ray

    context = ray.get_runtime_context()
    return Identity(
        pid=os.getpid(),
        address=own_address(),
        node=context.get_node_id(),
        stdout=os.readlink("/proc/self/fd/1"),
        stderr=os.readlink("/proc/self/fd/2"),
    )


def _tail_of(stderr: str | None, pid: int) -> list[str]:
    """Return a local worker's last lines; one that died before it introduced itself is found by its process."""
    if stderr is None:
        temporary, log = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())), f"logs/worker-*-{pid}.err"
        places = ("ray/session_*", f"{PRIVATE}{os.getpid()}-*/ray/session_*")
        stderr = str(next((path for place in places for path in temporary.glob(f"{place}/{log}")), ""))
    return last_lines(stderr) if stderr else []


def _spans(worker: object, since_ns: int) -> list[Entry]:
    """Runs in the worker's process, whatever class it has."""
    return RECORDER.since(since_ns)


class InlineWorkers(Workers[W]):
    """One rank in this process. Coroutine methods run on an event loop in a thread of its own."""

    def __init__(self, worker_cls: Callable[..., W], arguments: Sequence[dict[str, Any]], *, role: str) -> None:
        if len(arguments) != 1:
            raise ValueError(f"{role}: an inline group has one rank, got {len(arguments)}")
        self.role, self.size = role, 1
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"{role}-loop", daemon=True).start()
        self.worker = worker_cls(**arguments[0])

    def submit(
        self, rank: int, method: Callable[Concatenate[W, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Future[Any]:
        track = TRACK.set(f"{self.role} {rank}")  # a coroutine takes the context along
        try:
            if inspect.iscoroutinefunction(method):
                return asyncio.run_coroutine_threadsafe(method(self.worker, *args, **kwargs), self._loop)
            future: Future[Any] = Future()
            try:
                future.set_result(method(self.worker, *args, **kwargs))
            except Exception as error:
                future.set_exception(error)
            return future
        finally:
            TRACK.reset(track)

    def shutdown(self) -> None:
        close = getattr(self.worker, "close", None)
        if close is not None:
            close()
        self._loop.call_soon_threadsafe(self._loop.stop)


def own_address() -> str:
    """Return the address under which the other machines of the cluster reach this process; loopback without Ray."""
    import ray

    return ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
