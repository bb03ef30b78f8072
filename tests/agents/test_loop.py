"""Batches of episodes: how many may fail, what ends the others, and that batches in rounds follow one another."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from troupe.actors.generator import Request
from troupe.agents.loop import Batch, EpisodeLoop, place_of, together
from troupe.agents.turn_taking import AtOnce, Rounds, TurnTaking
from troupe.errors import PlayError
from troupe.records import Group, Sample


@dataclasses.dataclass(slots=True)
class Rules:
    """The config's section."""

    on_error: str = "outcome"
    error_reward: float = -1.0
    max_error_fraction: float = 0.1
    order: str = "rounds"


SAMPLES = [Sample(sample_id=f"s{number}", prompt="x") for number in range(3)]


def requests(*branches: int) -> list[Request]:
    return [Request(prompt_ids=[1], num_branches=count, max_tokens=9, temperature=1.0, seed=0) for count in branches]


def batch(*branches: int, **rules: Any) -> Batch:
    return Batch(requests(*branches), SAMPLES[: len(branches)], "agent", "episode", Rules(**rules))


# -- how many may fail -------------------------------------------------------------------------------------------


def test_episodes_are_numbered_through_the_groups_of_a_batch() -> None:
    assert batch(2, 1, 3).players == [[0, 1], [2], [3, 4, 5]]
    assert batch(2, 1, 3).size == 6


@pytest.mark.parametrize(
    ("branches", "fraction", "allowed"),
    [((10, 10), 0.1, 2), ((10, 9), 0.1, 1), ((5, 4), 0.1, 0), ((4,), 1.0, 4), ((4,), 0.0, 0), ((3,), 1 / 3, 1)],
)
def test_the_share_that_may_fail_is_of_all_episodes_of_a_step(
    branches: tuple[int, ...], fraction: float, allowed: int, caplog: pytest.LogCaptureFixture
) -> None:
    failing = batch(*branches, max_error_fraction=fraction)
    for number in range(allowed):
        failing.count_failure(ValueError("x"), f"agent failed {number}")
    assert len(caplog.records) == allowed
    if allowed < failing.size:
        error = KeyError("the cause")
        with pytest.raises(PlayError, match=rf"^{allowed + 1} of {failing.size} episodes failed .*; the last: it") as e:
            failing.count_failure(error, "it")
        assert e.value.__cause__ is error


def test_where_none_may_fail_the_first_stops_the_run_with_the_way_out(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PlayError, match=r"it broke; mend it, or let such episodes end with agent\.on_error: outcome"):
        batch(100, on_error="stop").count_failure(ValueError("x"), "it broke")
    assert caplog.records == []


def test_an_error_is_told_with_the_line_that_raised_it() -> None:
    with pytest.raises(KeyError) as raised:
        {}["x"]
    assert place_of(raised.value).startswith("KeyError: 'x' (test_loop.py line ")
    assert place_of(TimeoutError()) == "TimeoutError"
    assert place_of(ValueError("a: b")) == "ValueError: a: b"


# -- side by side ------------------------------------------------------------------------------------------------


def test_at_the_first_failure_the_others_are_cancelled_and_have_ended() -> None:
    ended = []

    async def long() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)  # what it opened is closed first
            ended.append("long")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def run() -> None:
        with pytest.raises(KeyError):
            await together([long(), fail(), long()])
        assert ended == ["long", "long"]

    asyncio.run(asyncio.wait_for(run(), 20))


class Play:
    """Groups that a test begins and ends."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.may_end = threading.Event()
        self.turns: list[TurnTaking] = []

    async def __call__(self, batch: Batch, index: int, turns: TurnTaking) -> Group:
        name = batch.samples[index].sample_id
        self.begun.append(name)
        self.turns.append(turns)
        try:
            if name == "fails":
                raise PlayError("it fails")
            while not self.may_end.is_set():
                await asyncio.sleep(0.005)
        finally:
            self.ended.append(name)
        return Group(sample=batch.samples[index], prompt_ids=[1], branches=[])


@pytest.fixture
def play() -> Play:
    return Play()


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
def loop(play: Play, rules: Rules) -> Iterator[EpisodeLoop]:
    loop = EpisodeLoop(None, play, section="agent", noun="episode", rules=rules)  # type: ignore[arg-type]
    yield loop
    loop.shutdown()


def submit(loop: EpisodeLoop, *names: str, alone: bool = True) -> list[Any]:
    samples = [Sample(sample_id=name, prompt="x") for name in names]
    return loop.submit(requests(*[1] * len(names)), samples, alone=alone)


def wait_for(play: Play, *names: str) -> None:
    deadline = time.monotonic() + 10
    while sorted(play.begun) != sorted(names):
        assert time.monotonic() < deadline, play.begun
        time.sleep(0.005)


def test_batches_in_rounds_follow_one_another_and_free_ones_do_not(loop: EpisodeLoop, play: Play, rules: Rules) -> None:
    first, second = submit(loop, "a", "b"), submit(loop, "c")
    aside = submit(loop, "held out", alone=False)
    wait_for(play, "a", "b", "held out")
    assert [type(turns) for turns in play.turns].count(AtOnce) == 1
    play.may_end.set()
    assert [future.result(10).sample.sample_id for future in (*first, *second, *aside)] == ["a", "b", "c", "held out"]
    assert play.begun[-1] == "c"
    assert [type(turns) for turns in play.turns].count(Rounds) == 3
    play.may_end.clear()
    rules.order = "free"
    both = [submit(loop, "d"), submit(loop, "e")]
    wait_for(play, "a", "b", "c", "held out", "d", "e")
    play.may_end.set()
    assert [future.result(10).sample.sample_id for (future,) in both] == ["d", "e"]


def test_what_stops_one_group_is_the_error_of_all_that_are_not_done(loop: EpisodeLoop, play: Play) -> None:
    futures = submit(loop, "a", "fails", "b")
    for future in futures:
        with pytest.raises(PlayError, match="it fails"):
            future.result(10)
    assert sorted(play.ended) == ["a", "b", "fails"]
    play.may_end.set()
    (again,) = submit(loop, "c")  # the next batch is not kept waiting
    assert again.result(10).sample.sample_id == "c"


def test_at_the_end_what_plays_is_given_up_and_the_thread_ends(play: Play, rules: Rules) -> None:
    loop = EpisodeLoop(None, play, section="agent", noun="episode", rules=rules)  # type: ignore[arg-type]
    submit(loop, "a")
    wait_for(play, "a")
    loop.shutdown()
    deadline = time.monotonic() + 10
    while loop.loop.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert play.ended == ["a"]


def test_rounds_that_wait_most_of_their_time_name_the_way_out(
    loop: EpisodeLoop, caplog: pytest.LogCaptureFixture
) -> None:
    for waited_s, whole_s in ((0.9, 1.0), (19, 100)):  # short, and a small share
        loop._warn_of_waiting(waited_s, whole_s)
    assert caplog.records == []
    loop._warn_of_waiting(30, 100)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("engines waited 30 of 100 s for the slowest episode of a round; agent.order:")
