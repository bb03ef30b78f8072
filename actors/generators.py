"""The generators of a run: N engines behind one door, which the jobs hold.

A batch is dealt out to the engines at once, by its own order and sizes alone, and its answers come back one by one as
they finish. What an engine does with them is `actors/generator.py`'s business.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from troupe.actors.generator import GeneratorWorker, Request
from troupe.actors.workers import Workers
from troupe.config.models import GeneratorConfig
from troupe.errors import TroupeError, WorkerError, sync_error
from troupe.records import Branch
from troupe.timeline import RECORDER


class Generators:
    """N engines behind one door. A batch is dealt out to them at once, by its own order and sizes alone."""

    def __init__(self, workers: Workers[GeneratorWorker], config: GeneratorConfig, *, sleeps: bool) -> None:
        self.workers = workers
        self.config = config
        self.sleeps = sleeps
        """Whether the engines share their devices with the trainer and sleep while it works."""
        self._loads = [0] * workers.size
        self._batches = itertools.count()
        self._lock = threading.Condition(threading.RLock())
        self._parts: list[_Part] = []
        """Of which answers are owed, in the order in which they were submitted."""
        self._lost: dict[int, WorkerError] = {}
        self._restarted: set[int] = set()
        """Engines that have not got the current weights yet."""
        self.waits_for_lost = False
        """Whether answers of an engine that died wait for `restart` and `resubmit`; else they fail at once."""
        self._open = True
        """Whether batches may be submitted: no engine may sample while new weights are on their way to it."""

    def submit(self, requests: Sequence[Request], *, alone: bool = True) -> list[Future[list[Branch]]]:
        """Start a batch; each future holds the branches of one request, as soon as it has them.

        Batches that run `alone` follow one another in each engine, so that their answers do not depend on timing, in
        no bit. Others mix with whatever runs: what is asked ahead need not wait for a straggler.
        """
        futures: list[Future[list[Branch]]] = [Future() for _ in requests]
        with self._lock:
            # The next round of a game may be asked at any moment, from another thread than the one that syncs.
            self._lock.wait_for(lambda: self._open)
            dealt = deal(requests, [0] * len(self._loads) if alone else self._loads)
            for engine, positions in enumerate(dealt):
                self._loads[engine] += sum(requests[position].num_branches for position in positions)
            for engine, positions in enumerate(dealt):
                if positions:
                    part = _Part(
                        self,
                        engine,
                        [requests[i] for i in positions],
                        [futures[i] for i in positions],
                        batch=next(self._batches),
                        alone=alone,
                    )
                    self._parts.append(part)
                    part.submit()
        return futures

    # -- engines that are lost ------------------------------------------------------------------------------

    def require_alive(self) -> None:
        """Raise the error of an engine that is lost while its answers wait for another one."""
        with self._lock:
            error = next(iter(self._lost.values()), None)
        if error is not None:
            raise error

    def lose(self, engine: int, error: BaseException) -> bool:
        """Return whether an engine's answers wait for it to be started again, and note that it is lost."""
        if not self.waits_for_lost or not isinstance(error, WorkerError):
            return False
        with self._lock:
            self._lost.setdefault(engine, error)
        return True

    def restart(self, engines: Sequence[int]) -> None:
        """Start engines again; they have the weights that they began with, and nothing to do until `resubmit`."""
        with self._lock:
            self._restarted.update(engines)
            for part in self._parts:
                if part.engine in engines:
                    part.abandon()
        self.workers.restart(engines)
        begun = [self.workers.submit(engine, GeneratorWorker.start) for engine in engines]
        self.workers.gather(begun, self.config.init_timeout_s, "its start")
        with self._lock:
            for engine in engines:
                self._lost.pop(engine, None)

    def resubmit(self) -> None:
        """Hand restarted engines the whole batches again of which they owe answers, in their order: the same requests
        with the same seeds in the same company give the same tokens, and those that had arrived are not given out
        twice."""
        with self._lock:
            engines, self._restarted = self._restarted, set()
            for part in [part for part in self._parts if part.engine in engines]:
                part.submit()

    @property
    def in_flight(self) -> int:
        """Branches that the engines work on or have waiting."""
        return sum(self.loads())

    def loads(self) -> list[int]:
        """Branches in flight on each engine, for error messages."""
        with self._lock:
            return list(self._loads)

    def late(self, what: str, waited_s: float) -> WorkerError:
        """Return the error of the engines that still work on something, with their stacks."""
        loads = self.loads()
        error = self.workers.late([engine for engine, load in enumerate(loads) if load], what, waited_s)
        error.args = (f"{error}; branches in flight per engine: {loads}",)
        return error

    def done(self, part: _Part, branches: int) -> None:
        with self._lock:
            self._loads[part.engine] -= branches
            if not part.owes and part in self._parts:
                self._parts.remove(part)

    def logprobs(self, engine: int, sequences: Sequence[Sequence[int]]) -> Future[list[list[float]]]:
        return self.workers.submit(engine, GeneratorWorker.logprobs, sequences)

    def pause(self) -> None:
        """Stop sampling until `receive`: what runs is frozen, what is submitted waits."""
        with self._lock:
            self._open = False
        if self.in_flight:
            self._control(GeneratorWorker.pause, phase="pause")

    def receive(self, version: int) -> None:
        self._control(GeneratorWorker.receive, version, phase="receive")
        self._reopen()

    def sleep(self) -> None:
        if self.sleeps:
            self._control(GeneratorWorker.sleep, phase="sleep")

    def wake(self, tag: str) -> None:
        if self.sleeps:
            self._control(GeneratorWorker.wake, tag, phase="wake")

    def shutdown(self) -> None:
        self.waits_for_lost = False
        self.workers.shutdown()
        for part in list(self._parts):
            part.fail(WorkerError("the engines were ended", role="generator"))
        self._reopen()  # whoever waits to submit finds the engines gone

    def _reopen(self) -> None:
        with self._lock:
            self._open = True
            self._lock.notify_all()

    def _control(self, method: Any, *args: Any, phase: str) -> None:
        try:
            with RECORDER.span(f"sync: {phase}"):
                self.workers.gather(self.workers.start(method, *args), self.config.sync_timeout_s, phase)
        except TroupeError as error:
            raise sync_error(f"weight sync failed in phase {phase!r}: {error}", error) from None


def deal(requests: Sequence[Request], loads: Sequence[int]) -> list[list[int]]:
    """Positions of the requests that each engine gets: in order, each to the engine with the fewest branches."""
    loads, dealt = list(loads), [list[int]() for _ in loads]
    for position, request in enumerate(requests):
        engine = loads.index(min(loads))
        loads[engine] += request.num_branches
        dealt[engine].append(position)
    return dealt


class _Part:
    """The part of a batch that one engine works on, until its last answer is here."""

    def __init__(
        self,
        generators: Generators,
        engine: int,
        requests: list[Request],
        futures: list[Future[list[Branch]]],
        *,
        batch: int,
        alone: bool,
    ) -> None:
        self.engine = engine
        self._generators, self._requests, self._futures = generators, requests, futures
        self._batch, self._alone = batch, alone
        self._open = set(range(len(requests)))
        self._attempt = 0

    @property
    def owes(self) -> bool:
        """Whether answers are still to come."""
        return bool(self._open)

    def submit(self) -> None:
        self._attempt += 1
        begun = self._generators.workers.submit(
            self.engine, GeneratorWorker.submit, self._batch, self._requests, alone=self._alone
        )
        begun.add_done_callback(partial(self._ask, self._attempt))

    def abandon(self) -> None:
        """Take no more answers of the engine that has it now."""
        self._attempt += 1

    def _ask(self, attempt: int, before: Future[Any]) -> None:
        if attempt != self._attempt:
            return
        if (error := before.exception()) is not None:
            self._failed(error)
            return
        answers = self._generators.workers.submit(self.engine, GeneratorWorker.poll, self._batch)
        answers.add_done_callback(partial(self._take, attempt))

    def _take(self, attempt: int, answers: Future[list[tuple[int, list[Branch]]]]) -> None:
        if attempt != self._attempt:
            return
        if (error := answers.exception()) is not None:
            self._failed(error)
            return
        for position, branches in answers.result():
            if position in self._open:
                self._close(position)
                self._futures[position].set_result(branches)
        if self._open:
            self._ask(attempt, answers)

    def _failed(self, error: BaseException) -> None:
        if not self._generators.lose(self.engine, error):
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        for position in sorted(self._open):
            self._close(position)
            self._futures[position].set_exception(error)

    def _close(self, position: int) -> None:
        self._open.discard(position)
        self._generators.done(self, self._requests[position].num_branches)


def start_generators(workers: Workers[GeneratorWorker], config: GeneratorConfig) -> None:
    """Wait until every engine generates; a WorkerError names the ones that did not come up."""
    started = time.monotonic()
    try:
        workers.gather(workers.start(GeneratorWorker.start), config.init_timeout_s, "its start")
    except TroupeError as error:
        waited = time.monotonic() - started
        raise WorkerError(
            f"{error} (after {waited:.0f} s); `python jobs/doctor.py` checks memory, versions and devices",
            details=error.details,
        ) from None


def generator_arguments(
    model_path: str,
    config: GeneratorConfig,
    *,
    max_length: int,
    precision: str,
    transport: str,
    sleep: bool,
    seed: int,
    trust_remote_code: bool = False,
) -> list[dict[str, Any]]:
    """Constructor arguments of every engine's worker."""
    return [
        {
            "model_path": model_path,
            "config": config,
            "index": index,
            "max_length": max_length,
            "precision": precision,
            "transport": transport,
            "sleep": sleep,
            "seed": seed,
            "num_engines": config.num_engines,
            "visible_devices": None,
            "trust_remote_code": trust_remote_code,
        }
        for index in range(config.num_engines)
    ]
