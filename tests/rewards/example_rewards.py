"""Rewards as a user would write them; the tests name them as `tests.rewards.example_rewards:<name>`."""

import asyncio
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from troupe.records import Branch, Sample, Score

NOT_A_FUNCTION = 3


def constant(sample: Sample, branch: Branch, *, value: Any = 1.0) -> Any:
    return value


def named(sample: Sample, branch: Branch, *, number: str) -> float:
    return float(number)  # a recipe cannot hold NaN itself


def words(sample: Sample, branch: Branch) -> int:
    return len(branch.text.split())


async def words_async(sample: Sample, branch: Branch) -> float:
    await asyncio.sleep(0)
    return float(len(branch.text.split()))


def rank(sample: Sample, branches: Sequence[Branch]) -> list[float]:
    """How many of the other answers are shorter."""
    return [sum(len(other.text) < len(branch.text) for other in branches) for branch in branches]


async def rank_async(sample: Sample, branches: Sequence[Branch]) -> list[Score]:
    return [Score(value=float(value), parts={"raw": value + 10.0}) for value in rank(sample, branches)]


def one_too_few(sample: Sample, branches: Sequence[Branch]) -> list[float]:
    return [0.0] * (len(branches) - 1)


def one_number(sample: Sample, branches: Sequence[Branch]) -> float:
    return 1.0


def missing_on_silence(sample: Sample, branch: Branch) -> Score:
    return Score(value=None) if not branch.text else Score(value=1.0, parts={"confidence": 0.5})


def buggy(sample: Sample, branch: Branch) -> float:
    return 1 / len(branch.text.replace("silence", ""))


def exhausted(sample: Sample, branch: Branch) -> float:
    return next(iter(()))


def hangs(sample: Sample, branch: Branch) -> float:
    time.sleep(30)
    return 1.0


async def hangs_async(sample: Sample, branch: Branch) -> float:
    await asyncio.sleep(30)
    return 1.0


def crashes(sample: Sample, branch: Branch) -> float:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 1.0


def hoards(sample: Sample, branch: Branch) -> float:
    return float(len(bytearray(1 << 33)))


def slow_at_first(sample: Sample, branch: Branch, *, slow_calls: int, counted_in: str) -> float:
    """Hangs on its first calls, which it counts on the disk."""
    call = len(os.listdir(counted_in))
    Path(counted_in, str(call)).touch()
    if call < slow_calls:
        time.sleep(30)
    return 1.0


def gives_up(sample: Sample, branch: Branch) -> float:
    raise TimeoutError("the judge's own client gave up")


def misnamed(sample: Sample, answer: Branch) -> float:
    return 0.0


def lonely(sample: Sample) -> float:
    return 0.0


class Novelty:
    """1 for an answer that is not among the last `memory` new ones."""

    def __init__(self, *, memory: Annotated[int, Field(ge=1)] = 100) -> None:
        if memory == 13:
            raise ValueError("13 answers bring bad luck")
        self._seen: deque[str] = deque(maxlen=memory if memory != 14 else 1 // 0)
        self.counters: Counter[str] = Counter()

    def __call__(self, sample: Sample, branch: Branch) -> float:
        if branch.text in self._seen:
            self.counters["repeats"] += 1
            return 0.0
        self._seen.append(branch.text)
        return 1.0


class Mute:
    """Forgot what a reward is."""
