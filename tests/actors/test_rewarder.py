"""The rewarder in the driver: judges of different groups are waited for side by side."""

from __future__ import annotations

import asyncio

from troupe.actors.rewarder import Rewarder
from troupe.config.rollout import RewardConfig
from troupe.records import Branch, Group, Sample


class Meeting:
    """Answers when the answers of two groups are here: one group at a time would wait for ever."""

    def __init__(self) -> None:
        self._arrived = 0
        self._complete = asyncio.Event()

    async def __call__(self, sample: Sample, branch: Branch) -> float:
        self._arrived += 1
        if self._arrived == 2:
            self._complete.set()
        await self._complete.wait()
        return float(len(branch.text))


def test_a_group_does_not_wait_for_the_judge_of_another() -> None:
    rewarder = Rewarder([RewardConfig(fn="tests.actors.test_rewarder:Meeting", timeout_s=30)])
    try:
        groups = [
            Group(
                sample=Sample(sample_id=text, prompt="?"), prompt_ids=[1], branches=[Branch(token_ids=[2], text=text)]
            )
            for text in ("one", "four")
        ]
        scored = [future.result(timeout=60) for future in [rewarder.score(group) for group in groups]]
        assert [group.scores[0].value for group in scored] == [3.0, 4.0]
    finally:
        rewarder.shutdown()
