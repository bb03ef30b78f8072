"""Whether an answer and a gold text are the same mathematics, computed in a process of its own that may die.

Sympy has no limits: `\\prod_{n=1}^{100000000} n` is one call that no thread and no exception interrupts. The process
gets
one question at a time and its clock ends it at `LIMIT_S`, by the kernel's alarm; the next question starts another.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from troupe.errors import RewardError
from troupe.project import ROOT

log = logging.getLogger(__name__)

LIMIT_S = 5.0
"""Longest comparison; an answer that needs longer is wrong."""
MEMORY_BYTES = 4 << 30
"""Address space of the process: a number that needs more is a wrong answer, too."""
COMMAND = "from troupe.rewards.mathematics import answer_questions; answer_questions()"


# -- in this process ----------------------------------------------------------------------------------------


async def same_mathematics(gold: str, answer: str) -> bool:
    """Compare in the process, one question after another; the event loop is free meanwhile.

    Example: `await same_mathematics("1/2", "It is $\\\\frac{2}{4}$.")` is True.
    """
    return await asyncio.get_running_loop().run_in_executor(_queue(), _ask, gold, answer)


@functools.cache
def _queue() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="mathematics")


_process: subprocess.Popen[str] | None = None
"""The running process; the one thread of `_queue` alone touches it."""


def _ask(gold: str, answer: str) -> bool:
    global _process
    if _process is None or _process.poll() is not None:
        _process = _started()
    process = _process
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([gold, answer, LIMIT_S]) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        status, _process = process.wait(), None
        reason = f"took longer than {LIMIT_S:g} s" if status == -signal.SIGALRM else f"ended its process ({status})"
        log.warning("comparing an answer as mathematics %s; it counts as wrong: %.80r", reason, answer)
        return False
    found = json.loads(line)
    if isinstance(found, str):
        raise ValueError(found)
    return bool(found)


def _started() -> subprocess.Popen[str]:
    """Start the process with its libraries loaded, which takes seconds that no answer should pay for."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; the end of our questions is what ends it
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RewardError(
            f"the process that compares answers as mathematics did not start (exit status {process.wait()}); "
            'its message stands above; `python -c "import math_verify"` shows whether the library works'
        )
    return process


# -- in the other one ---------------------------------------------------------------------------------------


def answer_questions() -> None:
    """Answer `[gold, answer, seconds]` lines with true, false or a mistake in the gold, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    compare("8", "8")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        gold, answer, limit_s = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # nobody handles the alarm, so the kernel ends the process
        try:
            found: bool | str = compare(gold, answer)
        except ValueError as error:
            found = str(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(found), file=answers, flush=True)


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
