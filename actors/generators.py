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
from typing import Any

from troupe.actors.generator import GeneratorWorker, Request
from troupe.actors.workers import Workers
from troupe.config.models import GeneratorConfig
from troupe.errors import SyncError, TroupeError, WorkerError
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
                    part = _Part(self, engine, [requests[i] for i in positions], [futures[i] for i in positions])
                    part.submit(next(self._batches), alone)
        return futures

    @property
    def in_flight(self) -> int:
        """Branches that the engines work on or have waiting."""
        return sum(self.loads())

    def loads(self) -> list[int]:
        """Branches in flight on each engine, for error messages."""
        with self._lock:
            return list(self._loads)

    def done(self, engine: int, branches: int) -> None:
        with self._lock:
            self._loads[engine] -= branches

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
        self.workers.shutdown()
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
            raise SyncError(f"weight sync failed in phase {phase!r}: {error}", details=error.details) from None


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
        self, generators: Generators, engine: int, requests: list[Request], futures: list[Future[list[Branch]]]
    ) -> None:
        self._generators, self._engine = generators, engine
        self._requests, self._futures = requests, futures
        self._open = set(range(len(requests)))

    def submit(self, batch: int, alone: bool) -> None:
        self._batch = batch
        begun = self._generators.workers.submit(
            self._engine, GeneratorWorker.submit, batch, self._requests, alone=alone
        )
        begun.add_done_callback(self._ask)

    def _ask(self, before: Future[Any]) -> None:
        if (error := before.exception()) is not None:
            self._fail(error)
            return
        answers = self._generators.workers.submit(self._engine, GeneratorWorker.poll, self._batch)
        answers.add_done_callback(self._take)

    def _take(self, answers: Future[list[tuple[int, list[Branch]]]]) -> None:
        if (error := answers.exception()) is not None:
            self._fail(error)
            return
        for position, branches in answers.result():
            self._close(position)
            self._futures[position].set_result(branches)
        if self._open:
            self._ask(answers)

    def _fail(self, error: BaseException) -> None:
        for position in sorted(self._open):
            self._close(position)
            self._futures[position].set_exception(error)

    def _close(self, position: int) -> None:
        self._open.discard(position)
        self._generators.done(self._engine, self._requests[position].num_branches)


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
