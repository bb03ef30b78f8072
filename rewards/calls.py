"""One reward called on the branches of a group: where it belongs, timed, tried again, its result checked.

A call that runs out of time, or whose process is lost, is a missing judgement and in the log. An exception, or a number
that is none, is a bug of the reward: it stops the run and names the sample and the answer it happened on.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import numbers
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from troupe.errors import RewardError
from troupe.processes.call_pool import CallLost
from troupe.processes.futures import run_aside
from troupe.records import Branch, JudgeCall, Sample, Score
from troupe.rewards.apart import Apart, Raised, place_of
from troupe.rewards.made_calls import collected_calls
from troupe.rewards.resolve import Reward

log = logging.getLogger(__name__)


async def judge(reward: Reward, sample: Sample, branches: Sequence[Branch], apart: Apart) -> list[Score]:
    """Return one score per branch; where the reward did not answer in time, its value is None."""
    if reward.per_group:
        results, calls = await _result(reward, sample, branches, apart)
        if _is_missing(results):
            results = [results, *[replace(results, reason="") for _ in branches]][: len(branches)]
        if not isinstance(results, Sequence) or len(results) != len(branches):
            got = len(results) if isinstance(results, Sequence) else f"a {type(results).__name__}"
            raise _error(reward, sample, branches, f"must return a list of {len(branches)} scores, got {got}")
        made = [calls, *[[] for _ in branches]][: len(branches)]  # those for the group go with its first branch
    else:
        found = await asyncio.gather(*(_result(reward, sample, branch, apart) for branch in branches))
        results, made = [result for result, _ in found], [calls for _, calls in found]
    return [
        replace(_score(reward, sample, branch, result), calls=tuple(calls))
        for branch, result, calls in zip(branches, results, made, strict=True)
    ]


def _is_missing(result: Any) -> bool:
    return isinstance(result, Score) and result.value is None and result.reason != ""


async def _result(
    reward: Reward, sample: Sample, judged: Branch | Sequence[Branch], apart: Apart
) -> tuple[Any, list[JudgeCall]]:
    """Return what the function returned, a score with a reason once every attempt was lost, and its requests."""
    with collected_calls() as calls:
        return await _attempts(reward, sample, judged, apart), calls


async def _attempts(reward: Reward, sample: Sample, judged: Branch | Sequence[Branch], apart: Apart) -> Any:
    attempts = 1 + reward.config.retries
    what = ""
    for attempt in range(1, attempts + 1):
        try:
            return await _call(reward, sample, judged, apart)
        except (TimeoutError, CallLost) as error:  # the time of ours, or that of a judge's own client
            happened = str(error) if isinstance(error, CallLost) else "gave no answer in time"
            what = _sentence(reward, sample, judged, happened)
            log.warning("%s (attempt %d of %d)", what, attempt, attempts)
        except Raised as error:
            raise _error(reward, sample, judged, str(error)) from None
        except RewardError as error:  # a sentence for the user already, as of a judge that refuses our key
            raise RewardError(f"reward {reward.label}: {error}") from error
        except Exception as error:
            raised = f"raised {type(error).__name__}: {error} ({place_of(error)})"
            raise _error(reward, sample, judged, raised) from error
    return Score(value=None, reason=what)


async def _call(reward: Reward, sample: Sample, judged: Branch | Sequence[Branch], apart: Apart) -> Any:
    """Call the reward where it belongs: what only waits, and plain text work of ours, right here."""
    if reward.place == "apart":
        return await apart.call(reward, sample, judged)
    async with asyncio.timeout(reward.limit_s):
        call = partial(reward.call, sample, judged)
        result = await run_aside(call, name="reward") if reward.place == "thread" else call()
        return await result if inspect.isawaitable(result) else result


def _score(reward: Reward, sample: Sample, branch: Branch, result: Any) -> Score:
    score = result if isinstance(result, Score) else None
    values = [result] if score is None else [*score.parts.values(), *([] if score.value is None else [score.value])]
    for value in values:
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise _error(
                reward, sample, branch, f"returned {value!r:.40} ({type(value).__name__}), not a finite number"
            )
    return Score(value=float(result)) if score is None else score


def _error(reward: Reward, sample: Sample, judged: Branch | Sequence[Branch], what: str) -> RewardError:
    return RewardError(_sentence(reward, sample, judged, what))


def _sentence(reward: Reward, sample: Sample, judged: Branch | Sequence[Branch], what: str) -> str:
    first = judged if isinstance(judged, Branch) else next(iter(judged), None)
    begins = repr(first.text[:80]) if first else "nowhere"
    return f"reward {reward.label} ({reward.config.fn}) {what} on sample {sample.sample_id}; the answer begins {begins}"
