"""Answers of an engine that dies wait for it to be started again, and are then the same ones, each given once."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from troupe.actors.generator import GeneratorWorker, Request
from troupe.actors.generators import Generators
from troupe.config.models import GeneratorConfig
from troupe.errors import WorkerError
from troupe.records import Branch


class TwoEngines:
    """Two engines that answer when they are told to, from seed and position alone, and die when they are told to."""

    role, size = "generator", 2

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, list[int]]] = []
        """(engine, batch, seeds) as they were submitted."""
        self.polls: dict[int, list[Future[Any]]] = {0: [], 1: []}
        self.restarted: list[int] = []

    def submit(self, rank: int, method: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        if method is GeneratorWorker.submit:
            self.batches.append((rank, args[0], [request.seed for request in args[1]]))
            answer.set_result(None)
        elif method is GeneratorWorker.poll:
            self.polls[rank].append(answer)
        else:
            answer.set_result("0.32.0")
        return answer

    def gather(self, futures: list[Future[Any]], timeout_s: float | None = None, phase: str = "") -> list[Any]:
        return [future.result(0) for future in futures]

    def restart(self, ranks: Any) -> None:
        self.restarted += ranks

    def shutdown(self) -> None:
        self.die(0)
        self.die(1)

    def answer(self, rank: int, *positions: int) -> None:
        seeds = next(seeds for engine, _, seeds in reversed(self.batches) if engine == rank)
        self.polls[rank].pop().set_result([(place, [Branch(token_ids=[seeds[place]])]) for place in positions])

    def die(self, rank: int) -> None:
        polls, self.polls[rank] = self.polls[rank], []
        for poll in polls:
            poll.set_exception(WorkerError(f"generator rank {rank} died", role="generator", ranks=[rank]))


def request(seed: int) -> Request:
    return Request(prompt_ids=[1], num_branches=1, max_tokens=4, temperature=1.0, seed=seed)


def test_a_batch_is_submitted_again_whole_and_what_had_arrived_is_not_given_twice() -> None:
    group = TwoEngines()
    generators = Generators(group, GeneratorConfig(num_engines=2), sleeps=False)  # type: ignore[arg-type]
    generators.waits_for_lost = True
    answers = generators.submit([request(seed) for seed in range(6)])  # 0, 2, 4 on engine 0 and 1, 3, 5 on engine 1
    group.answer(0, 1)
    group.die(0)
    with pytest.raises(WorkerError, match="rank 0 died"):
        generators.require_alive()
    assert generators.loads() == [2, 3]
    group.answer(1, 0, 1, 2)  # the other goes on
    generators.restart([0])
    generators.resubmit()
    generators.require_alive()
    assert group.restarted == [0]
    assert group.batches == [(0, 0, [0, 2, 4]), (1, 1, [1, 3, 5]), (0, 0, [0, 2, 4])]
    group.answer(0, 1, 0)
    assert not answers[4].done()
    group.answer(0, 2)
    assert [answer.result(0)[0].token_ids for answer in answers] == [[seed] for seed in range(6)]
    assert generators.loads() == [0, 0]
    assert group.polls == {0: [], 1: []}


def test_an_engine_that_is_given_up_may_answer_late_and_nobody_listens() -> None:
    group = TwoEngines()
    generators = Generators(group, GeneratorConfig(num_engines=2), sleeps=False)  # type: ignore[arg-type]
    generators.waits_for_lost = True
    (answer,) = generators.submit([request(7)])
    generators.restart([0])  # it hung
    late = group.polls[0].pop()
    generators.resubmit()
    late.set_exception(WorkerError("generator rank 0 died", role="generator", ranks=[0]))
    generators.require_alive()
    group.answer(0, 0)
    assert answer.result(0)[0].token_ids == [7]


def test_without_somebody_to_start_them_again_and_at_the_end_answers_fail() -> None:
    group = TwoEngines()
    generators = Generators(group, GeneratorConfig(num_engines=2), sleeps=False)  # type: ignore[arg-type]
    lost, other = generators.submit([request(0), request(1)])
    group.die(0)
    assert isinstance(lost.exception(0), WorkerError)
    generators.waits_for_lost = True
    group.die(1)
    assert not other.done()
    generators.shutdown()
    assert isinstance(other.exception(0), WorkerError)
