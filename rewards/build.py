"""What a good answer is: functions, or objects that are called like one, and their weighted sum.

A reward takes `(sample, branch)` and returns a number or a Score, or takes `(sample, branches)` and returns one per
branch; it may be async. The built-in ones are `BUILT_IN` in `troupe.rewards.resolve`, your own is
`package.module:function` or `package.module:Class` (docs/rewards.md). Where rewards run, in how many processes, is the
rewarder's business.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from troupe.config.rollout import RewardConfig, RewarderConfig
from troupe.errors import ConfigError, DataError
from troupe.records import Group, Sample, Score
from troupe.rewards.resolve import Reward, resolve

__all__ = ["Rewards", "build_rewards"]


def build_rewards(configs: Sequence[RewardConfig], limits: RewarderConfig | None = None) -> Rewards:
    """Return the weighted sum of the configured rewards. ConfigError for wrong names, imports and arguments.

    `limits` bounds the processes of plain functions, which start at the first call.
    """
    if not configs:
        raise ConfigError("rewards: name at least one function, such as {fn: math_answer}")
    label, count = Counter(config.label for config in configs).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"rewards: {count} rewards are called {label!r} in the logs; give each a name of its own")
    rewards = [resolve(config) for config in configs]
    # What a Python program handed over and no other process can have is called in a thread, which nothing can end.
    from troupe.rewards.apart import can_run_apart

    in_threads = [each.place == "apart" and not can_run_apart(each) for each in rewards]
    placed = [replace(each, place="thread") if stays else each for each, stays in zip(rewards, in_threads, strict=True)]
    return Rewards(placed, limits)


class Rewards:
    """The weighted sum: `value` of a score is the sum, `parts` the unweighted value of each reward by its label.

    Example: with `{fn: math_answer}` and `{fn: length, weight: 0.1, args: {limit: 40}}` a right answer of 50 tokens
    scores `Score(value=1.0, parts={"math_answer": 1.0, "length": 0.0})`. A part that is missing is not in `parts`, and
    makes the whole score missing.
    """

    def __init__(self, rewards: Sequence[Reward], limits: RewarderConfig | None = None) -> None:
        self._rewards = list(rewards)
        apart, limits = [reward for reward in rewards if reward.place == "apart"], limits or RewarderConfig()
        from troupe.rewards.apart import Apart

        self._apart = Apart(apart, processes=limits.processes, memory_gib=limits.memory_gib)
        self.missing: Counter[str] = Counter()
        """Judgements that were missing so far, by label."""
        self._under_way: Counter[str] = Counter()

    @property
    def labels(self) -> list[str]:
        return [reward.label for reward in self._rewards]

    def check(self, samples: Iterable[Sample]) -> None:
        """Raise DataError for the first sample on which a reward could judge no answer, such as one without gold."""
        checks = [(reward.label, reward.check) for reward in self._rewards if reward.check is not None]
        for sample in samples if checks else ():
            asked = {reward.label for reward in self._asked(sample)}
            for label, check in checks:
                if label not in asked:
                    continue
                try:
                    check(sample)
                except ValueError as error:
                    raise DataError(f"{sample.sample_id}: reward {label}: {error}") from None

    @property
    def counters(self) -> dict[str, float]:
        """What this process counted so far: `<label>/<what>` of rewards with `counters`, and missing judgements of all.

        Example: `{"judge/requests": 40, "judge/tokens": 20480, "judge/cached": 24, "judge/missing": 1}`.
        """
        counted = {
            f"{reward.label}/{what}": count
            for reward in self._rewards
            for what, count in self._apart.counters.get(reward.label, getattr(reward.call, "counters", {})).items()
        }
        return counted | {f"{label}/missing": count for label, count in self.missing.items()}

    async def score(self, group: Group) -> list[Score]:
        """Return one score per branch; rewards that wait (async, or with a time limit) wait at the same time."""
        asked = self._asked(group.sample)
        columns = await asyncio.gather(*(self._judge(reward, group) for reward in asked))
        if not asked:  # only models judge this source
            return [Score(value=0.0)] * len(group.branches)
        return [self._sum(asked, scores) for scores in zip(*columns, strict=True)]

    async def _judge(self, reward: Reward, group: Group) -> list[Score]:
        self._under_way[reward.label] += 1
        try:
            from troupe.rewards.calls import judge

            return await judge(reward, group.sample, group.branches, self._apart)
        finally:
            self._under_way[reward.label] -= 1

    def waiting_for(self) -> list[str]:
        """Return the labels of the rewards that judge a group now."""
        return [label for label, count in self._under_way.items() if count]

    def _asked(self, sample: Sample) -> list[Reward]:
        """Return the rewards that judge answers to a sample: of a mixture those of its source."""
        source = sample.fields.get("source")
        return [each for each in self._rewards if each.config.sources is None or source in each.config.sources]

    async def score_all(self, groups: Sequence[Group], max_concurrency: int) -> list[list[Score]]:
        """Return the scores of every group, at most `max_concurrency` groups at a time."""
        slots = asyncio.Semaphore(max_concurrency)

        async def one(group: Group) -> list[Score]:
            async with slots:
                return await self.score(group)

        return await asyncio.gather(*(one(group) for group in groups))

    def _sum(self, asked: Sequence[Reward], scores: Sequence[Score]) -> Score:
        total: float | None = 0.0
        parts: dict[str, float] = {}
        for reward, score in zip(asked, scores, strict=True):
            parts |= {f"{reward.label}/{name}": value for name, value in score.parts.items()}
            if score.value is None:
                self.missing[reward.label] += 1
                total = None
            else:
                parts[reward.label] = float(score.value)
                total = None if total is None else total + reward.config.weight * score.value
        calls = [call for score in scores for call in score.calls]
        return Score(value=total, parts=parts, calls=calls, reason=next((s.reason for s in scores if s.reason), ""))

    def close(self) -> None:
        """End the processes of plain functions; idempotent."""
        self._apart.close()
