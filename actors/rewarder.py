"""The rewarder: runs `rewards/` on finished groups, in the driver or in workers of its own, and asks frozen models.

Cheap rewards (exact match) are fastest in the driver, between two answers of the generators; rewards that
wait for a network or compute for long get workers. Functions and models work on a group at the same time.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from troupe.actors.meters import record
from troupe.actors.workers import Workers
from troupe.config.rollout import RewardConfig, RewarderConfig
from troupe.errors import RewardError, TroupeError
from troupe.processes.futures import all_of, then
from troupe.records import Group, Score
from troupe.resolve import take_over
from troupe.rewards.build import Rewards, build_rewards
from troupe.timeline import InFlight


class RewarderWorker:
    """Scores groups; async, so that slow judges overlap."""

    def __init__(
        self,
        *,
        configs: Sequence[RewardConfig],
        limits: RewarderConfig,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        """Build the rewards; `functions` are those of a Python program, which this process could not import."""
        take_over(functions or {})
        self._rewards = build_rewards(configs, limits)
        self._flight = InFlight("score")

    async def score(self, group: Group) -> Group:
        self._flight.change(1)
        try:
            return await _scored(self._rewards, group)
        finally:
            self._flight.change(-1)


class RewardPart(Protocol):
    """A part of the reward that asks a model: a reward model, the perplexity of the gold answer."""

    @property
    def label(self) -> str:
        """The name of its score among the parts."""

    @property
    def weight(self) -> float:
        """What its score counts in the sum."""

    def score(self, group: Group) -> Future[list[Mapping[str, float]]]:
        """Parts for the logs, of each branch; without `label` among them, the branch's judgement is missing."""


class Rewarder:
    """The weighted sum of reward functions, and of parts that ask a model."""

    def __init__(
        self,
        configs: Sequence[RewardConfig],
        workers: Workers[RewarderWorker] | None = None,
        *,
        parts: Sequence[RewardPart] = (),
        limits: RewarderConfig | None = None,
    ) -> None:
        """Another rewarder may hold the same `parts`; what built them ends them."""
        self._workers, self._parts = workers, tuple(parts)
        # Built here too when workers score, so that an unknown function fails before anything expensive starts.
        self._rewards = build_rewards(configs, limits) if configs else None
        # A thread of its own: answers arrive on the threads of Ray or of an event loop, which must not be kept. Groups
        # whose judges wait for a network wait side by side there.
        self._flight = InFlight("judgements", track="rewarder")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="rewarder", daemon=True).start()
        self._turns = itertools.count()
        self._judging: dict[int, tuple[str, int | None, float]] = {}
        """Groups that are judged now: sample, worker, since when."""

    def score(self, group: Group) -> Future[Group]:
        """Score the group: the functions and every part at the same time."""
        asked, branches = time.monotonic(), len(group.branches)
        self._measure(in_flight=self._flight.change(1))
        rank = None if self._workers is None else next(self._turns) % self._workers.size
        self._judging[id(group)] = (group.sample.sample_id, rank, asked)
        judged = all_of([self._functions(group, rank), *(part.score(group) for part in self._parts)])

        def combine(results: list[Any]) -> Group:
            scored, *found = results
            for part, more in zip(self._parts, found, strict=True):
                scored = _with_part(scored, more, label=part.label, weight=part.weight)
            return scored

        def measure(done: Future[Group]) -> None:
            del self._judging[id(group)]
            failed = branches if done.exception() else sum(score.value is None for score in done.result().scores)
            self._measure(self._flight.change(-1), time.monotonic() - asked, judged=branches, failed=failed)

        scored = then(judged, combine)
        scored.add_done_callback(measure)
        return scored

    def _measure(self, in_flight: int, waited_s: float | None = None, *, judged: int = 0, failed: int = 0) -> None:
        """Record for Prometheus, also where workers or models do the work."""
        rank = {"role": "rewarder", "rank": "0"}
        record("rewarder_judgements_in_flight", in_flight, **rank)
        record("rewarder_judgements", judged, **rank)
        record("rewarder_failures", failed, **rank)
        if waited_s is not None:
            record("rewarder_latency_seconds", waited_s, **rank)

    def late(self, what: str, waited_s: float) -> TroupeError | None:
        """Return the error of judgements that are still under way; None where there are none."""
        judging = list(self._judging.values())
        if not judging:
            return None
        ranks = sorted({rank for _, rank, _ in judging if rank is not None})
        if self._workers is not None:
            return self._workers.late(ranks, what, waited_s)
        sample, _, since = min(judging, key=lambda each: each[2])
        names = ", ".join(self._rewards.waiting_for()) if self._rewards is not None else ""
        return RewardError(
            f"{what} did not end within {waited_s:.0f} s: {len(judging)} groups wait for their rewards "
            f"({names or 'a model'}), that of sample {sample} for {time.monotonic() - since:.0f} s; give a reward that "
            "is awaited a timeout_s, after which its judgement is missing"
        )

    def restart(self, ranks: Sequence[int]) -> None:
        """End the processes of workers; Ray starts others and repeats their calls."""
        assert self._workers is not None
        self._workers.end_processes(ranks)

    def _functions(self, group: Group, rank: int | None) -> Future[Group]:
        """Return the group scored by the reward functions alone."""
        if self._rewards is None:
            nothing: Future[Group] = Future()
            nothing.set_result(group.with_scores([Score(value=0.0)] * len(group.branches)))
            return nothing
        if self._workers is None or rank is None:
            return asyncio.run_coroutine_threadsafe(_scored(self._rewards, group), self._loop)
        return self._workers.submit(rank, RewarderWorker.score, group)

    def shutdown(self) -> None:
        asyncio.run_coroutine_threadsafe(_give_up_all(), self._loop)
        if self._rewards is not None:
            self._rewards.close()
        if self._workers is not None:
            self._workers.shutdown()


async def _scored(rewards: Rewards, group: Group) -> Group:
    try:
        return group.with_scores(await rewards.score(group))
    except asyncio.CancelledError:
        raise RewardError(f"the rewards of sample {group.sample.sample_id} were given up with the run") from None


async def _give_up_all() -> None:
    """End what is still judged, then the loop; tasks that end with the interpreter print tracebacks."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.get_running_loop().stop()


def _with_part(group: Group, found: Sequence[Mapping[str, float]], *, label: str, weight: float) -> Group:
    """Return the scores with a model's parts, and its weighted score in their sums; missing where either is."""
    return group.with_scores(
        [
            replace(
                score,
                value=None if score.value is None or label not in more else score.value + weight * more[label],
                parts={**score.parts, **more},
            )
            for score, more in zip(group.scores, found, strict=True)
        ]
    )
