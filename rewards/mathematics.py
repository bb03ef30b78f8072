"""Whether an answer and a gold text are the same mathematics, computed in processes that may die.

Sympy has no limits: `\\prod_{n=1}^{100000000} n` is one call that no thread and no exception interrupts. `CallPool`
ends its process at `LIMIT_S`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from troupe.hardware import hardware
from troupe.processes.call_pool import CallLost, CallPool

log = logging.getLogger(__name__)

LIMIT_S = 5.0
"""Longest comparison; an answer that needs longer is wrong."""
MOST_PROCESSES = 2
TOGETHER = 16
"""Most comparisons in one call; a call costs as much as a comparison."""


async def same_mathematics(gold: str, answer: str) -> bool:
    """Compare in a process that can be killed; an answer that takes too long or too much is wrong.

    Example: `await same_mathematics("1/2", "It is $\\\\frac{2}{4}$.")` is True.
    """
    loop = asyncio.get_running_loop()
    question = _Question(gold, answer, loop.create_future())
    waiting = _waiting.setdefault(loop, [])
    waiting.append(question)
    if len(waiting) == 1:  # what else is asked before the loop comes to it travels along
        loop.call_soon(_send, loop)
    found = await question.found
    if isinstance(found, str):
        raise ValueError(found)
    return found


@dataclass(slots=True)
class _Question:
    gold: str
    answer: str
    found: asyncio.Future[bool | str]
    """Whether they are the same, or what is wrong with the gold text."""


_waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Question]] = weakref.WeakKeyDictionary()
_sent: set[asyncio.Task[None]] = set()


def _send(loop: asyncio.AbstractEventLoop) -> None:
    questions = _waiting.pop(loop)
    for start in range(0, len(questions), TOGETHER):
        task = loop.create_task(_answer(questions[start : start + TOGETHER]))
        _sent.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(_sent.discard)


async def _answer(questions: Sequence[_Question]) -> None:
    """Answer questions in one call; one by one where the call is lost, since one of them is to blame."""
    pairs = [(question.gold, question.answer) for question in questions]
    try:
        found = await asyncio.wrap_future(_pool().submit(compare_all, pairs, timeout_s=LIMIT_S))
    except CallLost as lost:
        if len(questions) > 1:
            for question in questions:
                await _answer([question])
            return
        log.warning("comparing an answer as mathematics %s; it counts as wrong: %.80r", lost, questions[0].answer)
        found = [False]
    except Exception as error:
        for question in questions:
            question.found.set_exception(error)
        return
    for question, same in zip(questions, found, strict=True):
        if not question.found.done():  # given up by what asked
            question.found.set_result(same)


@functools.cache
def _pool() -> CallPool:
    return CallPool(min(MOST_PROCESSES, hardware().num_cores), prepare=_load, modules=["troupe.rewards.mathematics"])


def _load() -> None:
    """Load the library, which takes seconds that no answer should pay for."""
    compare("8", "8")


def compare_all(pairs: Sequence[tuple[str, str]]) -> list[bool | str]:
    """Return for each pair whether it is the same mathematics, or what is wrong with its gold text."""
    found: list[bool | str] = []
    for gold, answer in pairs:
        try:
            found.append(compare(gold, answer))
        except ValueError as error:
            found.append(str(error))
    return found


def compare(gold: str, answer: str) -> bool:
    """Compare here and now, however long it takes."""
    from math_verify import verify  # seconds of import that the strict rule does not need

    return verify(_parsed_gold(gold), _parsed(answer), timeout_seconds=None)


@functools.lru_cache(maxsize=4096)
def _parsed_gold(gold: str) -> list[Any]:
    is_bare_latex = "\\" in gold and "$" not in gold  # outside dollars only its first number would be read
    parsed = ([] if is_bare_latex else _parsed(gold)) or _parsed(f"${gold}$")
    if all(isinstance(candidate, str) for candidate in parsed):
        raise ValueError(f"the gold answer {gold!r} is no mathematics that math-verify can read")
    return parsed


def _parsed(text: str) -> list[Any]:
    import math_verify.grader
    import math_verify.parser

    # Without its own timeouts, which catch no call into C, it warns once; we know.
    math_verify.parser.TIMEOUT_WARNING_SHOWN = math_verify.grader.TIMEOUT_WARNING_SHOWN = True
    return math_verify.parse(text, parsing_timeout=None)
