"""The rewarder: runs `rewards/` on finished groups, in the driver or in workers of its own.

Cheap rewards (exact match) are fastest in the driver, between two answers of the generators; rewards that
wait for a network or compute for long get workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from actors.group import Group as WorkerGroupBase
from core.recipes import RewardConfig
from core.records import Group
from rewards import build_rewards


class RewarderWorker:
    """Scores groups; async, so that slow judges overlap."""

    def __init__(self, *, configs: Sequence[RewardConfig]) -> None:
        self._rewards = build_rewards(configs)

    async def score(self, group: Group) -> Group:
        return group.with_scores(await self._rewards.score(group))


class Rewarder:
    """The weighted sum of reward functions."""

    def __init__(self, configs: Sequence[RewardConfig], workers: WorkerGroupBase[RewarderWorker] | None = None) -> None:
        self._workers = workers
        # Built here too when workers score, so that an unknown function fails before anything expensive starts.
        self._rewards = build_rewards(configs)
        # A thread of its own: answers arrive on the threads of Ray or of an event loop, which must not be kept.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rewarder")
        self._next = 0

    def score(self, group: Group) -> Future[Group]:
        """The group with its scores."""
        if self._workers is None:
            return self._thread.submit(lambda: group.with_scores(self._rewards.score_now(group)))
        self._next = (self._next + 1) % self._workers.size
        rank = self._next
        answer: Future[Group] = Future()
        running = self._workers.submit(rank, RewarderWorker.score, group)

        def finish(scored: Future[Group]) -> None:
            error = scored.exception()
            if error is None:
                answer.set_result(scored.result())
            else:
                assert self._workers is not None
                answer.set_exception(self._workers.translate(error, rank))

        running.add_done_callback(finish)
        return answer

    def shutdown(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._workers is not None:
            self._workers.shutdown()
