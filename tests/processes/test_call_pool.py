"""A call that hangs, crashes or takes all memory loses its own process, and the next call gets another."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from troupe.processes.call_pool import CallLost, CallPool

ROOT = Path(__file__).resolve().parents[2]


def hang(seconds: float) -> None:
    time.sleep(seconds)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def take(mebibytes: int) -> int:
    return len(bytearray(mebibytes << 20))


def own_pid() -> int:
    return os.getpid()


PREPARED: list[str] = []


def prepare_slowly() -> None:
    time.sleep(0.8)
    PREPARED.append("once")


def prepared() -> list[str]:
    return PREPARED


def prepare_in_vain() -> None:
    raise ImportError("no library")


def cannot_be_sent() -> object:
    return (each for each in [1])


@pytest.fixture(scope="module")
def pool() -> Iterator[CallPool]:
    pool = CallPool(2, memory_gib=0.5)
    yield pool
    pool.close()


def test_results_and_errors_come_back(pool: CallPool) -> None:
    assert [pool.submit(math.factorial, n).result(60) for n in range(5)] == [1, 1, 2, 6, 24]
    with pytest.raises(ValueError, match="factorial"):
        pool.submit(math.factorial, -1).result(60)


def test_a_call_that_hangs_is_ended_and_the_others_go_on(pool: CallPool) -> None:
    stuck = pool.submit(hang, 600, timeout_s=0.5)
    assert pool.submit(math.factorial, 3).result(60) == 6
    with pytest.raises(CallLost, match=r"^took longer than 0\.5 s$"):
        stuck.result(60)
    assert pool.submit(math.factorial, 4).result(60) == 24


def test_the_time_in_the_queue_is_not_the_calls(pool: CallPool) -> None:
    answers = [pool.submit(hang, 0.5, timeout_s=2.5) for _ in range(12)]
    assert [answer.result(60) for answer in answers] == [None] * 12


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGSEGV, "was ended by SIGSEGV"), (signal.SIGKILL, "was ended by SIGKILL")]
)
def test_a_call_that_crashes_says_how(pool: CallPool, number: int, words: str) -> None:
    with pytest.raises(CallLost, match=words):
        pool.submit(die, number).result(60)
    assert pool.submit(math.factorial, 4).result(60) == 24


def test_memory_is_bounded(pool: CallPool) -> None:
    assert pool.submit(take, 64).result(60) == 64 << 20
    with pytest.raises(CallLost, match="more memory"):
        pool.submit(take, 2048).result(60)


def test_processes_killed_between_two_calls_are_replaced(pool: CallPool) -> None:
    for pid in {pool.submit(own_pid).result(60) for _ in range(8)}:
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 10)
    assert pool.submit(math.factorial, 5).result(60) == 120


def test_a_process_is_prepared_once_and_in_no_calls_time() -> None:
    pool = CallPool(1, prepare=prepare_slowly)
    try:
        assert [pool.submit(prepared, timeout_s=0.7).result(60) for _ in range(2)] == [["once"], ["once"]]
    finally:
        pool.close()


def test_where_no_process_can_be_prepared_a_call_says_so_and_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("troupe.processes.call_pool.ATTEMPTS", 1)
    pool = CallPool(1, prepare=prepare_in_vain)
    try:
        with pytest.raises(CallLost, match="found no process to run in"):
            pool.submit(own_pid).result(60)
    finally:
        pool.close()


def test_what_cannot_be_sent_to_a_process_or_back_is_an_error_of_that_call(pool: CallPool) -> None:
    with pytest.raises(Exception, match="pickle"):
        pool.submit(lambda: 1).result(60)
    with pytest.raises(TypeError, match="pickle"):
        pool.submit(cannot_be_sent).result(60)
    assert pool.submit(math.factorial, 4).result(60) == 24


def test_calls_that_are_under_way_at_the_end_are_given_up_and_their_processes_are_gone() -> None:
    pool = CallPool(1)
    pid = pool.submit(own_pid).result(60)
    answers = [pool.submit(hang, 600) for _ in range(3)]  # one that runs, and two behind it
    pool.close()
    for answer in answers:
        with pytest.raises(CallLost, match=r"^was given up$"):
            answer.result(10)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    pool.close()
    assert pool.submit(math.factorial, 3).result(60) == 6  # it can be used again
    pool.close()


def test_a_program_that_is_killed_leaves_no_process_and_needs_no_main_guard(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from tests.processes.test_call_pool import CallPool, hang, own_pid\n"
        "print('begins', flush=True)\n"
        "pool = CallPool(1)\n"
        "print(pool.submit(own_pid).result(60), flush=True)\n"
        "pool.submit(hang, 600).result()\n"
    )
    child = subprocess.Popen(
        [sys.executable, str(program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begins\n"
    worker = psutil.Process(int(child.stdout.readline()))
    family = [worker, *worker.parents()[:1]]
    child.kill()
    child.wait()
    _, left = psutil.wait_procs(family, 30)
    assert left == []
