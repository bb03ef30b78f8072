"""A group answers for each of its ranks, and every failure arrives as an error that says whose it is."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.actors.example_workers import AsyncCounter, Counter
from troupe.actors.placement import Cluster
from troupe.actors.workers import InlineWorkers, RayWorkers, Slot, Workers, memory_death
from troupe.errors import RewardError, WorkerBug, WorkerError

STARTS = (10, 20)


def two_counters(cluster: Cluster) -> Workers[Counter]:
    return cluster.workers(Counter, [{"start": start} for start in STARTS], role="counter")


@pytest.fixture(scope="module")
def counters(cluster: Cluster) -> Iterator[Workers[Counter]]:
    group = two_counters(cluster)
    assert isinstance(group, RayWorkers)
    yield group
    group.shutdown()


def test_a_call_reaches_every_rank_and_the_answers_come_in_their_order(counters: Workers[Counter]) -> None:
    assert counters.call(Counter.add, 1, times=2) == [12, 22]
    assert counters.call(Counter.add, -2) == [10, 20]
    assert counters.submit(1, Counter.add, 0).result(60) == 20
    assert counters.call(Counter.role) == ["counter-0", "counter-1"]


def test_what_ray_keeps_of_a_job_lies_where_no_other_user_comes(counters: Workers[Counter]) -> None:
    assert isinstance(counters, RayWorkers)
    counters.call(Counter.add, 0)
    log = Path(counters.identities[0].stderr)
    assert any(directory.stat().st_mode & 0o077 == 0 for directory in log.parents)


def test_scatter_hands_each_rank_its_own_shard(counters: Workers[Counter]) -> None:
    assert counters.scatter(Counter.add, [1, 2], times=3) == [13, 26]
    assert counters.scatter(Counter.add, [-3, -6]) == [10, 20]


@pytest.mark.parametrize("shards", [[1], [1, 2, 3]])
def test_scatter_refuses_another_number_of_shards_than_ranks(counters: Workers[Counter], shards: list[int]) -> None:
    with pytest.raises(ValueError, match=f"counter: {len(shards)} shards for 2 ranks"):
        counters.scatter(Counter.add, shards)
    assert counters.call(Counter.add, 0) == [10, 20]


def test_a_users_error_in_a_worker_arrives_as_itself(counters: Workers[Counter]) -> None:
    with pytest.raises(RewardError) as failed:
        counters.call(Counter.refuse)
    assert type(failed.value) is RewardError
    assert str(failed.value) in {f"the judge of {start} refused" for start in STARTS}


def test_a_bug_in_a_worker_arrives_as_one_sentence_with_the_workers_traceback_below(counters: Workers[Counter]) -> None:
    with pytest.raises(WorkerBug, match=r"^counter rank [01] failed in `divide`: ZeroDivisionError: ") as bug:
        counters.call(Counter.divide, 0)
    assert "in divide" in bug.value.details
    assert "\x1b" not in bug.value.details
    assert "RayTaskError" not in str(bug.value) + bug.value.details
    assert counters.call(Counter.divide, 10) == [1.0, 2.0]


def test_a_deadline_names_the_ranks_that_are_late(cluster: Cluster) -> None:
    group = two_counters(cluster)
    try:
        group.call(Counter.add, 0)  # both are up, so the deadline measures the call
        futures = group.start(Counter.wait_at, 20, seconds=600)
        with pytest.raises(WorkerError, match=r"counter rank \[1\] did not finish its nap within 5 s") as late:
            group.gather(futures, 5, "its nap")
        assert (late.value.role, late.value.ranks) == ("counter", (1,))
        assert re.search(r"wait_at \(.*example_workers.py:", late.value.details)
    finally:
        group.shutdown()


def test_a_stopped_worker_is_named_with_its_stack_and_ends_with_its_group(cluster: Cluster) -> None:
    group = two_counters(cluster)
    assert isinstance(group, RayWorkers)
    group.call(Counter.add, 0)
    process = psutil.Process(group.identities[1].pid)
    process.suspend()
    with pytest.raises(WorkerError, match=r"counter rank \[1\] did not finish its call within 3 s") as late:
        group.gather(group.start(Counter.add, 1), 3)
    assert "stopped (SIGSTOP)" in late.value.details
    assert "Thread" in late.value.details
    group.shutdown()
    assert psutil.wait_procs([process], 20)[1] == []


def test_a_worker_that_starts_again_is_as_new_and_keeps_its_place(cluster: Cluster) -> None:
    group = two_counters(cluster)
    try:
        assert group.call(Counter.add, 1) == [11, 21]
        group.restart([1])
        assert group.call(Counter.add, 1) == [12, 21]
        assert group.call(Counter.role) == ["counter-0", "counter-1"]
    finally:
        group.shutdown()


@pytest.mark.parametrize("fault", ["kill", "suspend"])
def test_ray_starts_a_worker_without_state_again_and_repeats_its_call(cluster: Cluster, fault: str) -> None:
    slots = [Slot(), Slot()]
    group = RayWorkers(Counter, [{"start": start} for start in STARTS], role="counter", slots=slots, restarts=2)
    try:
        group.call(Counter.add, 0)
        calls = group.start(Counter.wait_at, 20, seconds=2)
        getattr(psutil.Process(group.identities[1].pid), fault)()
        assert group.gather(calls, 20) == [10, 20]
    finally:
        group.shutdown()


def test_a_worker_that_dies_is_an_error_that_names_it_and_does_not_wait_for_the_others(cluster: Cluster) -> None:
    group = two_counters(cluster)
    try:
        group.call(Counter.add, 0)
        slow = group.submit(0, Counter.wait_at, 10, seconds=600)
        started = time.monotonic()
        with pytest.raises(WorkerError, match=r"^counter rank 1 died: "):
            group.gather([slow, group.submit(1, Counter.die_at, 20)])
        assert time.monotonic() - started < 120
        with pytest.raises(WorkerError, match="counter rank 1 died"):  # and so is every later call
            group.gather([group.submit(0, Counter.add, 0, times=0), group.submit(1, Counter.add, 0)], 120)
    finally:
        group.shutdown()


def test_a_worker_that_a_signal_ends_is_told_with_the_signal_and_its_last_lines(cluster: Cluster) -> None:
    group = two_counters(cluster)
    try:
        group.call(Counter.add, 0)
        with pytest.raises(WorkerError) as death:
            group.submit(1, Counter.die_of, signal.SIGSEGV).result(120)
        assert re.match(
            r"counter rank 1 died: its process \d+ was ended by SIGSEGV \(it touched memory that is not its own\) "
            r"while it ran `die_of`$",
            str(death.value),
        )
        assert "its last words" in death.value.details
    finally:
        group.shutdown()


def test_a_worker_that_cannot_start_is_an_error_with_its_reason(cluster: Cluster) -> None:
    group = cluster.workers(Counter, [{"start": -1}], role="misfit")
    with pytest.raises(
        WorkerError, match=r"^misfit rank 0 died at its start: ValueError: a counter starts at 0 or above$"
    ):
        group.call(Counter.add, 1)


def test_async_workers_answer_calls_that_wait_for_each_other(cluster: Cluster) -> None:
    group = cluster.workers(AsyncCounter, [{}], role="meeting", max_concurrency=10)
    try:
        futures = [group.submit(0, AsyncCounter.meet, 3) for _ in range(3)]
        assert group.gather(futures, 120) == [3, 3, 3]
        with pytest.raises(RewardError, match=r"^the judge refused$"):
            group.call(AsyncCounter.refuse)
    finally:
        group.shutdown()


def test_an_inline_group_is_the_same_group_in_this_process() -> None:
    group = InlineWorkers(Counter, [{"start": 10}], role="counter")
    assert group.call(Counter.add, 1, times=2) == [12]
    assert group.scatter(Counter.add, [1], times=3) == [15]
    with pytest.raises(ValueError, match="counter: 2 shards for 1 ranks"):
        group.scatter(Counter.add, [1, 2])
    with pytest.raises(RewardError, match=r"^the judge of 15 refused$"):
        group.call(Counter.refuse)
    with pytest.raises(ZeroDivisionError):
        group.call(Counter.divide, 0)
    group.shutdown()
    assert group.worker.closed
    with pytest.raises(ValueError, match="an inline group has one rank, got 2"):
        InlineWorkers(Counter, [{"start": 1}, {"start": 2}], role="counter")


def test_an_inline_group_runs_coroutines_side_by_side() -> None:
    group = InlineWorkers(AsyncCounter, [{}], role="meeting")
    futures = [group.submit(0, AsyncCounter.meet, 3) for _ in range(3)]
    assert group.gather(futures, 60) == [3, 3, 3]
    with pytest.raises(RewardError, match=r"^the judge refused$"):
        group.call(AsyncCounter.refuse)
    group.shutdown()


def test_a_worker_that_ray_kills_for_memory_is_told_with_who_held_it() -> None:
    # What Ray 2.60 wrote on a machine of 24 GB, shortened.
    text = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: "
        "80011) was "
        "23.30GB used / 23.54GB limit (0.989691)\nOOM kill reason: Memory usage exceeded threshold\n"
        "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n11848\t18.53\tpython "
        "sweep.py\n17012\t0.90\tray::TrainedWorker.update\n"
        "Refer to the documentation on how to address the out of memory issue"
    )
    error = memory_death("policy rank 0", "update", text)
    assert str(error).startswith(
        "policy rank 0 died: Ray killed it for memory with 23.30 of 23.54 GB in use on its machine while it ran "
        "`update`; "
    )
    assert "policy.row_tokens" in str(error)
    assert "11848\t18.53\tpython sweep.py" in error.details
    assert "Refer to" not in error.details
