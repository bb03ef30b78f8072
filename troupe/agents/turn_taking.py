"""When the engines get what episodes want answered: in rounds, which repeat to the bit, or at once, which never waits.

The shape of a matrix product decides its last bit, so a run repeats only where what is computed together does. A round
is the next requests of every open episode, in the episodes' order, and waits for the slowest of them.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Protocol

from troupe.actors.generator import Request
from troupe.actors.generators import Generators
from troupe.records import Branch


class TurnTaking(Protocol):
    """A way from an episode's request to its answer."""

    async def ask(self, player: int, request: Request) -> Branch:
        """Return the answer to a request of episode `player`; it has one branch."""

    def leave(self, player: int) -> None:
        """Take note that the episode asks for nothing more."""


class Rounds:
    """One batch for every round, which the engines compute alone."""

    def __init__(self, generators: Generators, players: int) -> None:
        self._generators, self._open = generators, set(range(players))
        self._asked: list[tuple[int, Request, asyncio.Future[Branch]]] = []
        self._first_asked_at = 0.0
        self.waited_s = 0.0
        """Seconds in which a request was there and others were waited for."""

    async def ask(self, player: int, request: Request) -> Branch:
        """Return the answer, once the round is complete and computed."""
        if not self._asked:
            self._first_asked_at = time.monotonic()
        answer: asyncio.Future[Branch] = asyncio.get_running_loop().create_future()
        self._asked.append((player, request, answer))
        self._begin_if_complete()
        return await answer

    def leave(self, player: int) -> None:
        """Go on without the episode."""
        self._open.discard(player)
        self._asked = [each for each in self._asked if each[0] != player]
        self._begin_if_complete()

    def _begin_if_complete(self) -> None:
        if not self._asked or {player for player, _, _ in self._asked} != self._open:
            return
        asked, self._asked = sorted(self._asked, key=lambda each: each[0]), []
        self.waited_s += time.monotonic() - self._first_asked_at
        answers = self._generators.submit([request for _, request, _ in asked], alone=True)
        for (_, _, waiting), answer in zip(asked, answers, strict=True):
            asyncio.wrap_future(answer).add_done_callback(functools.partial(_settle, waiting))


class AtOnce:
    """A batch for every request, which mixes with whatever the engines compute."""

    def __init__(self, generators: Generators) -> None:
        self._generators = generators

    async def ask(self, player: int, request: Request) -> Branch:
        """Return the answer as soon as the engines have it."""
        (answer,) = self._generators.submit([request], alone=False)
        (branch,) = await asyncio.wrap_future(answer)
        return branch

    def leave(self, player: int) -> None:
        """Do nothing: nobody waits for the episode."""


def _settle(waiting: asyncio.Future[Branch], done: asyncio.Future[list[Branch]]) -> None:
    if waiting.done():  # its episode was given up
        done.exception()
    elif (error := done.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(done.result()[0])
