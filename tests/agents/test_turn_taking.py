"""Rounds wait for every open episode and for no other; without them nobody waits for anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from troupe.actors.generator import Request
from troupe.agents.turn_taking import AtOnce, Rounds
from troupe.errors import WorkerError
from troupe.records import Branch


class Engines:
    """Engines that answer when a test says so."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        """The seeds of the requests of each batch."""
        self.alone: list[bool] = []
        self.answers: dict[int, Future[list[Branch]]] = {}

    def submit(self, requests: Sequence[Request], *, alone: bool = True) -> list[Future[list[Branch]]]:
        self.batches.append([request.seed for request in requests])
        self.alone.append(alone)
        futures: list[Future[list[Branch]]] = [Future() for _ in requests]
        self.answers.update(zip(self.batches[-1], futures, strict=True))
        return futures

    def answer(self, seed: int) -> None:
        self.answers[seed].set_result([Branch(token_ids=[seed])])


def request(seed: int) -> Request:
    return Request(prompt_ids=[1], num_branches=1, max_tokens=9, temperature=1.0, seed=seed)


def on_a_loop(test: Callable[[Engines], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(Engines()), 20))

    run.__name__ = test.__name__
    return run


def ask(turns: Rounds | AtOnce, player: int, seed: int) -> asyncio.Task[Branch]:
    return asyncio.ensure_future(turns.ask(player, request(seed)))


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


@on_a_loop
async def test_a_round_begins_with_the_last_of_the_open_episodes_and_has_their_order(engines: Engines) -> None:
    rounds = Rounds(engines, 3)  # type: ignore[arg-type]
    asked = [ask(rounds, player, 10 + player) for player in (2, 0)]
    await settled()
    assert engines.batches == []
    asked.append(ask(rounds, 1, 11))
    await settled()
    assert engines.batches == [[10, 11, 12]]  # not as they came
    assert engines.alone == [True]
    for seed in (11, 12, 10):
        engines.answer(seed)
    assert [list((await each).token_ids) for each in asked] == [[12], [10], [11]]


@on_a_loop
async def test_an_episode_that_ends_is_not_waited_for(engines: Engines) -> None:
    rounds = Rounds(engines, 3)  # type: ignore[arg-type]
    first = ask(rounds, 0, 10)
    await settled()
    rounds.leave(1)
    assert engines.batches == []
    rounds.leave(2)
    assert engines.batches == [[10]]
    engines.answer(10)
    await first
    rounds.leave(0)
    rounds.leave(0)  # as an episode may that failed
    assert engines.batches == [[10]]  # and no empty round


@on_a_loop
async def test_what_an_episode_that_was_given_up_had_asked_is_computed_no_more(engines: Engines) -> None:
    rounds = Rounds(engines, 2)  # type: ignore[arg-type]
    given_up = ask(rounds, 0, 10)
    await settled()
    given_up.cancel()
    rounds.leave(0)
    other = ask(rounds, 1, 11)
    await settled()
    assert engines.batches == [[11]]
    engines.answer(11)
    assert list((await other).token_ids) == [11]


@on_a_loop
async def test_several_requests_of_one_episode_are_of_one_round(engines: Engines) -> None:
    rounds = Rounds(engines, 2)  # type: ignore[arg-type]
    for seed in (20, 21):
        ask(rounds, 1, seed)
    await settled()
    assert engines.batches == []  # two requests, but of one of two episodes
    ask(rounds, 0, 10)
    await settled()
    assert engines.batches == [[10, 20, 21]]


@on_a_loop
async def test_rounds_follow_each_other_as_fast_as_their_episodes(engines: Engines) -> None:
    rounds = Rounds(engines, 2)  # type: ignore[arg-type]

    async def play(player: int) -> None:
        for turn in range(3):
            seed = 10 * turn + player
            waiting = ask(rounds, player, seed)
            while seed not in engines.answers:
                await asyncio.sleep(0)
            engines.answer(seed)
            await waiting
        rounds.leave(player)

    await asyncio.gather(play(0), play(1))
    assert engines.batches == [[0, 1], [10, 11], [20, 21]]


@on_a_loop
async def test_the_error_of_an_engine_is_that_of_the_one_who_asked(engines: Engines) -> None:
    for turns in (Rounds(engines, 2), AtOnce(engines)):  # type: ignore[arg-type]
        asked = [ask(turns, player, 10 + player) for player in (0, 1)]
        await settled()
        engines.answers[10].set_exception(WorkerError("generator rank 0 died"))
        engines.answer(11)
        with pytest.raises(WorkerError, match="generator rank 0 died"):
            await asked[0]
        assert list((await asked[1]).token_ids) == [11]


@on_a_loop
async def test_an_answer_that_comes_after_its_episode_was_given_up_disturbs_nobody(engines: Engines) -> None:
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: unheard.append(told))
    rounds = Rounds(engines, 2)  # type: ignore[arg-type]
    asked = [ask(rounds, player, 10 + player) for player in (0, 1)]
    await settled()
    for each in asked:
        each.cancel()
    await settled()
    engines.answer(10)
    engines.answers[11].set_exception(WorkerError("generator rank 0 died"))
    await settled()
    del asked
    assert unheard == []


@on_a_loop
async def test_at_once_is_a_batch_for_every_request_that_mixes_with_others(engines: Engines) -> None:
    turns = AtOnce(engines)  # type: ignore[arg-type]
    asked = [ask(turns, player, 10 + player) for player in (1, 0)]
    await settled()
    assert (engines.batches, engines.alone) == ([[11], [10]], [False, False])
    engines.answer(10)
    assert list((await asked[1]).token_ids) == [10]
    assert not asked[0].done()
    turns.leave(1)
    engines.answer(11)
    await asked[0]
