"""Groups of workers: one method call fans out to every rank, and answers come back as futures.

`WorkerGroup` runs each rank as a Ray actor, `InlineGroup` runs the same classes in this process for tests and
debugging. A remote call is written with the method itself, never its name in a string, so readers can follow
it and checkers can check it. The only `ray.remote` of the project is here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from core.errors import TroupeError, WorkerError
from core.timeline import RECORDER, TRACK, Entry

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

SPANS_WITHIN_S = 10.0
"""Seconds that a step waits for the spans of workers; a timeline is not worth more."""

W = TypeVar("W")
P = ParamSpec("P")
R = TypeVar("R")


class Group(ABC, Generic[W]):
    """Workers of class W with ranks 0 .. size - 1."""

    role: str
    size: int

    @abstractmethod
    def submit(
        self, rank: int, method: Callable[Concatenate[W, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Future[Any]:
        """Start `method` on one rank; the future holds its answer or its error."""

    @abstractmethod
    def shutdown(self) -> None:
        """End the workers; idempotent."""

    def call(self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """The answers of every rank to the same call."""
        return self.gather(self.start(method, *args, **kwargs))

    def start(self, method: Callable[Concatenate[W, P], Any], *args: P.args, **kwargs: P.kwargs) -> list[Future[Any]]:
        """Start the same call on every rank."""
        return [self.submit(rank, method, *args, **kwargs) for rank in range(self.size)]

    def scatter(self, method: Callable[..., R], shards: Sequence[Any], **common: Any) -> list[R]:
        """The answers of every rank to its own shard; `common` keyword arguments go to all."""
        if len(shards) != self.size:
            raise ValueError(f"{self.role}: {len(shards)} shards for {self.size} ranks")
        return self.gather([self.submit(rank, method, shard, **common) for rank, shard in enumerate(shards)])

    def gather(self, futures: Sequence[Future[Any]], timeout_s: float | None = None, phase: str = "") -> list[Any]:
        """Results in order. The first failure is raised at once, though other ranks may still wait for the failed
        one; past `timeout_s` a WorkerError names the ranks that have not answered."""
        done, waiting = concurrent.futures.wait(futures, timeout_s, concurrent.futures.FIRST_EXCEPTION)
        for future in done:
            if (error := future.exception()) is not None:
                raise self.translate(error, futures.index(future)) from None
        if waiting:
            late = [rank for rank, future in enumerate(futures) if future in waiting]
            raise WorkerError(f"{self.role} rank {late} did not finish {phase or 'its call'} within {timeout_s:.0f} s")
        return [future.result() for future in futures]

    def translate(self, error: BaseException, rank: int) -> BaseException:
        """A worker's failure as the driver should raise it."""
        return error

    def spans(self, since_ns: int) -> list[Entry]:
        """What the ranks did in processes of their own after `since_ns`; of one that does not answer soon, nothing."""
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where a rank runs: a bundle of a placement group, and what it takes of it."""

    placement_group: PlacementGroup | None = None
    bundle: int = 0
    num_gpus: float = 0.0
    env: dict[str, str] = field(default_factory=dict)


class WorkerGroup(Group[W]):
    """Each rank is a Ray actor, placed by its slot. Picklable: workers may call the ranks of another group."""

    def __init__(
        self,
        worker_cls: Callable[..., W],
        arguments: Sequence[dict[str, Any]],
        *,
        role: str,
        slots: Sequence[Slot],
        max_concurrency: int = 1,
    ) -> None:
        """`arguments` holds each rank's constructor arguments. Returns at once; the first call waits for the start."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.role, self.size = role, len(arguments)
        remote_cls = ray.remote(worker_cls)
        self.handles = []
        for rank, (slot, kwargs) in enumerate(zip(slots, arguments, strict=True)):
            strategy = (
                PlacementGroupSchedulingStrategy(slot.placement_group, placement_group_bundle_index=slot.bundle)
                if slot.placement_group is not None
                else "DEFAULT"
            )
            self.handles.append(
                remote_cls.options(
                    name=None,
                    num_cpus=0,
                    num_gpus=slot.num_gpus,
                    max_concurrency=max_concurrency,
                    scheduling_strategy=strategy,
                    runtime_env={"env_vars": {"TROUPE_ROLE": f"{role}-{rank}", **slot.env}},
                ).remote(**kwargs)
            )

    def submit(
        self, rank: int, method: Callable[Concatenate[W, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Future[Any]:
        return getattr(self.handles[rank], method.__name__).remote(*args, **kwargs).future()

    def spans(self, since_ns: int) -> list[Entry]:
        asked = [handle.__ray_call__.remote(_spans, since_ns).future() for handle in self.handles]
        answered, _ = concurrent.futures.wait(asked, SPANS_WITHIN_S)
        return [
            replace(entry, track=f"{self.role} {rank}")
            for rank, future in enumerate(asked)
            if future in answered and future.exception() is None
            for entry in future.result()
        ]

    def shutdown(self) -> None:
        import ray

        for handle in self.handles:
            ray.kill(handle)
        self.handles = []

    def translate(self, error: BaseException, rank: int) -> BaseException:
        """A worker's own TroupeError as it was raised there; a death as a sentence that names role and rank."""
        from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

        if isinstance(error, RayTaskError) and isinstance(error.cause, TroupeError):
            return error.cause
        if isinstance(error, ActorDiedError | RayActorError):
            text = str(error).strip()
            if "creation task" in text:  # its constructor raised: the traceback's last line says what
                return WorkerError(f"{self.role} rank {rank} died at its start: {text.splitlines()[-1]}")
            return WorkerError(f"{self.role} rank {rank} died: {' '.join(text.split())[:600]}")
        return error


def _spans(worker: object, since_ns: int) -> list[Entry]:
    """Runs in the worker's process, whatever class it has."""
    return RECORDER.since(since_ns)


class InlineGroup(Group[W]):
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
    """The address under which the other machines of the cluster reach this process; loopback without Ray."""
    import ray

    return ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
