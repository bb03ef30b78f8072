"""A user's plain rewards, called in processes that can be killed: a call that hangs or crashes is a missing judgement.

Functions share a few processes. An instance of a class has one of its own, where it keeps its state from call to call;
a killed one begins anew. Both are built there from their configs, before the first call and outside of its time.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle

from troupe.config.rollout import RewardConfig
from troupe.errors import RewardError
from troupe.hardware import hardware
from troupe.processes.call_pool import MEMORY_GIB, CallPool
from troupe.records import Branch, JudgeCall, Sample
from troupe.resolve import handed_over, take_over
from troupe.rewards.made_calls import collected_calls, note_call
from troupe.rewards.resolve import Reward, resolve

MOST_PROCESSES = 4
"""Processes that share a set of functions where the config names no number."""
MODULES = ("troupe.rewards.resolve",)


class Raised(Exception):
    """An error of the reward itself, with its place; it stops the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """The outcome of a call: its result, or the words of an error."""

    result: Any = None
    raised: str = ""
    refused: str = ""
    """The text of a RewardError, a sentence for the user already."""
    in_time: bool = True
    """False where the reward itself gave up on something it waited for."""
    calls: Sequence[JudgeCall] = ()
    counters: Mapping[str, float] = field(default_factory=dict)


class Apart:
    """The plain functions and instances of a set of rewards, and the processes in which they run."""

    def __init__(
        self, rewards: Sequence[Reward], *, processes: int | None = None, memory_gib: float = MEMORY_GIB
    ) -> None:
        size = processes or min(MOST_PROCESSES, max(1, hardware().num_cores // 2))
        self.counters: dict[str, Mapping[str, float]] = {}
        """What an instance counted, by its label."""
        self._pools: dict[str, CallPool] = {}
        shared = [reward for reward in rewards if not reward.has_state]
        groups = [(shared, size), *(([reward], 1) for reward in rewards if reward.has_state)]
        for group, count in groups:
            prepare = partial(_prepare, [reward.config for reward in group], _functions())
            pool = CallPool(count, memory_gib=memory_gib, prepare=prepare, modules=MODULES)
            self._pools |= {reward.label: pool for reward in group}

    async def call(self, reward: Reward, sample: Sample, judged: Branch | Sequence[Branch]) -> Any:
        """Return what the reward returns. Raises CallLost where its process was lost, TimeoutError where it gave up,
        Raised or RewardError where it failed.
        """
        asked = self._pools[reward.label].submit(_judge, reward.label, sample, judged, timeout_s=reward.limit_s)
        answer: _Judged = await asyncio.wrap_future(asked)
        self.counters[reward.label] = answer.counters
        note_call(*answer.calls)
        if not answer.in_time:
            raise TimeoutError(answer.raised)
        if answer.refused:
            raise RewardError(answer.refused)
        if answer.raised:
            raise Raised(answer.raised)
        return answer.result

    def close(self) -> None:
        """End the processes; idempotent."""
        for pool in self._pools.values():
            pool.close()


def _functions() -> bytes:
    functions: bytes = cloudpickle.dumps(dict(handed_over()))
    return functions


def can_run_apart(reward: Reward) -> bool:
    """Return whether another process can have the reward: what a program handed over may hold what only it has."""
    function = handed_over().get(reward.config.fn)
    if function is None:
        return True
    try:
        cloudpickle.dumps(function)
    except Exception:  # whatever an object raises that will not be pickled
        return False
    return True


def place_of(error: BaseException) -> str:
    """Return where it was raised, for example `rewards.py line 12`; the sentence is all that a user sees."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name} line {frame.lineno}"


# -- in the other process -----------------------------------------------------------------------------------

_rewards: dict[str, Reward] = {}
_broken = ""


def _prepare(configs: Sequence[RewardConfig], functions: bytes) -> None:
    """Build the rewards of this process; what goes wrong is the answer to its first call."""
    global _broken
    try:
        take_over(cloudpickle.loads(functions))
        _rewards.update({config.label: resolve(config) for config in configs})
    except BaseException as error:
        _broken = f"cannot be built in its process: {type(error).__name__}: {error} ({place_of(error)})"


def _judge(label: str, sample: Sample, judged: Branch | Sequence[Branch]) -> _Judged:
    if _broken:
        return _Judged(raised=_broken)
    with collected_calls() as calls:
        try:
            result = _rewards[label].call(sample, judged)
        except MemoryError:
            raise
        except RewardError as error:
            return _Judged(refused=str(error), calls=calls)
        except Exception as error:
            raised = f"raised {type(error).__name__}: {error} ({place_of(error)})"
            return _Judged(raised=raised, in_time=not isinstance(error, TimeoutError), calls=calls)
    counters = dict(getattr(_rewards[label].call, "counters", {}))
    return _Judged(result=result, calls=calls, counters=counters)
