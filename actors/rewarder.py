"""The rewarder: runs `rewards/` on finished groups, in the driver or in workers of its own, and asks the reward model.

Cheap rewards (exact match) are fastest in the driver, between two answers of the generators; rewards that
wait for a network or compute for long get workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from actors.group import Group as WorkerGroupBase
from actors.reward_model import LABEL, RewardModel
from core.recipes import RewardConfig
from core.records import Group, Score
from rewards import build_rewards


class RewarderWorker:
    """Scores groups; async, so that slow judges overlap."""

    def __init__(self, *, configs: Sequence[RewardConfig]) -> None:
        self._rewards = build_rewards(configs)

    async def score(self, group: Group) -> Group:
        return group.with_scores(await self._rewards.score(group))


class Rewarder:
    """The weighted sum of reward functions, and of a reward model where there is one."""

    def __init__(
        self,
        configs: Sequence[RewardConfig],
        workers: WorkerGroupBase[RewarderWorker] | None = None,
        *,
        model: RewardModel | None = None,
    ) -> None:
        """Another rewarder may hold the same `model`; whoever built it ends it."""
        self._workers, self._model = workers, model
        # Built here too when workers score, so that an unknown function fails before anything expensive starts.
        self._rewards = build_rewards(configs) if configs else None
        # A thread of its own: answers arrive on the threads of Ray or of an event loop, which must not be kept.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rewarder")
        self._next = 0

    def score(self, group: Group) -> Future[Group]:
        """The group with its scores."""
        answer: Future[Group] = Future()

        def judged(functions: Future[Group]) -> None:
            if _failed(functions, answer):
                return
            scored = functions.result()
            if self._model is None:
                answer.set_result(scored)
                return
            self._model.score(scored).add_done_callback(lambda parts: combined(scored, parts))

        def combined(scored: Group, parts: Future[list[Mapping[str, float]]]) -> None:
            if not _failed(parts, answer):
                assert self._model is not None
                answer.set_result(_with_parts(scored, parts.result(), self._model.weight))

        self._functions(group).add_done_callback(judged)
        return answer

    def _functions(self, group: Group) -> Future[Group]:
        """The group scored by the reward functions alone."""
        if self._rewards is None:
            nothing: Future[Group] = Future()
            nothing.set_result(group.with_scores([Score(value=0.0)] * len(group.branches)))
            return nothing
        if self._workers is None:
            rewards = self._rewards
            return self._thread.submit(lambda: group.with_scores(rewards.score_now(group)))
        rank = self._next = (self._next + 1) % self._workers.size
        workers, scored = self._workers, Future[Group]()

        def translate(answered: Future[Group]) -> None:
            error = answered.exception()
            scored.set_result(answered.result()) if error is None else scored.set_exception(
                workers.translate(error, rank)
            )

        workers.submit(rank, RewarderWorker.score, group).add_done_callback(translate)
        return scored

    def shutdown(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._workers is not None:
            self._workers.shutdown()


def _failed(future: Future[Any], answer: Future[Group]) -> bool:
    """Hand a failure on; whether there was one."""
    error = future.exception()
    if error is not None:
        answer.set_exception(error)
    return error is not None


def _with_parts(group: Group, parts: Sequence[Mapping[str, float]], weight: float) -> Group:
    """The scores with the reward model's parts, and its weighted score in their sums."""
    return group.with_scores(
        [
            replace(
                score,
                value=None if score.value is None else score.value + weight * more[LABEL],
                parts={**score.parts, **more},
            )
            for score, more in zip(group.scores, parts, strict=True)
        ]
    )
