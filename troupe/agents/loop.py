"""Batches of episodes on an event loop of their own thread, and how many of them may fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from troupe.actors.generator import Request
from troupe.actors.generators import Generators
from troupe.agents.turn_taking import AtOnce, Rounds, TurnTaking
from troupe.errors import PlayError
from troupe.records import Group, Sample

log = logging.getLogger(__name__)

ENDING_S = 2.0
"""Seconds that what plays has to end in."""
MOSTLY_WAITING = 0.2
"""Share of the time that rounds wait for episodes above which the log names the way out."""


class FailureRules(Protocol):
    """The price of an episode that raises: the sections `environment` and `agent`."""

    on_error: Any
    error_reward: float
    max_error_fraction: float
    order: Any


@dataclass(slots=True)
class Batch:
    """The episodes of one submission, in groups, and the groups that they become."""

    requests: Sequence[Request]
    samples: Sequence[Sample]
    section: str
    noun: str
    rules: FailureRules
    players: list[list[int]] = field(init=False)
    """Numbers of the episodes, by group."""
    groups: list[Future[Group]] = field(init=False)
    failed: int = 0

    def __post_init__(self) -> None:
        numbers = itertools.count()
        self.players = [[next(numbers) for _ in range(request.num_branches)] for request in self.requests]
        self.groups = [Future() for _ in self.requests]

    @property
    def size(self) -> int:
        """Episodes."""
        return sum(map(len, self.players))

    def count_failure(self, error: Exception, told: str) -> None:
        """Count an episode that raised; PlayError where the rules do not allow it, or not so many."""
        if self.rules.on_error == "stop":
            raise PlayError(
                f"{told}; mend it, or let such {self.noun}s end with {self.section}.on_error: outcome"
            ) from error
        log.warning("%s; the %s ends with the reward %g", told, self.noun, self.rules.error_reward)
        self.failed += 1
        most = self.rules.max_error_fraction
        if self.failed > most * self.size:
            raise PlayError(
                f"{self.failed} of {self.size} {self.noun}s failed (at most {most:.0%} may, "
                f"{self.section}.max_error_fraction); the last: {told}"
            ) from error


class EpisodeLoop:
    """Plays batches of episodes; `play_group` plays those of one sample side by side."""

    def __init__(
        self,
        generators: Generators,
        play_group: Callable[[Batch, int, TurnTaking], Coroutine[Any, Any, Group]],
        *,
        section: str,
        noun: str,
        rules: FailureRules,
    ) -> None:
        """Start the loop; messages call an episode by the `noun`, and name settings of the config's `section`."""
        self._generators, self._play_group = generators, play_group
        self._section, self._noun, self._rules = section, noun, rules
        self.loop = asyncio.new_event_loop()
        """Of a thread of its own, on which all episodes live: what one opens survives from turn to turn."""
        self._one_batch = asyncio.Lock()
        self._playing: set[Future[None]] = set()
        threading.Thread(target=self.loop.run_forever, name="episodes", daemon=True).start()

    def submit(self, requests: Sequence[Request], samples: Sequence[Sample], *, alone: bool) -> list[Future[Group]]:
        """Return a batch's groups to come. Batches `alone` play in rounds, one batch after the other, unless the config
        lets their episodes go free.
        """
        batch = Batch(list(requests), list(samples), self._section, self._noun, self._rules)
        playing = asyncio.run_coroutine_threadsafe(self._play(batch, alone), self.loop)
        self._playing.add(playing)  # the loop itself holds tasks weakly
        playing.add_done_callback(self._playing.discard)
        return batch.groups

    def run(self, started: Awaitable[Any], timeout_s: float) -> Any:
        """Return what a coroutine gives that runs on the loop."""

        async def wait() -> Any:
            return await started

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(timeout_s)

    def shutdown(self) -> None:
        """Stop the loop; what plays is given up."""
        asyncio.run_coroutine_threadsafe(self._end(), self.loop)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=ENDING_S)
        self.loop.stop()

    async def _play(self, batch: Batch, alone: bool) -> None:
        in_rounds = alone and self._rules.order == "rounds"
        async with self._one_batch if in_rounds else contextlib.nullcontext():
            rounds = Rounds(self._generators, batch.size) if in_rounds else None
            started = time.monotonic()
            turns = rounds or AtOnce(self._generators)
            try:
                await together(self._play_one(batch, index, turns) for index in range(len(batch.groups)))
            except Exception as error:
                for future in batch.groups:
                    if not future.done():
                        future.set_exception(error)
            if rounds is not None:
                self._warn_of_waiting(rounds.waited_s, time.monotonic() - started)

    async def _play_one(self, batch: Batch, index: int, turns: TurnTaking) -> None:
        batch.groups[index].set_result(await self._play_group(batch, index, turns))

    def _warn_of_waiting(self, waited_s: float, whole_s: float) -> None:
        if waited_s > max(MOSTLY_WAITING * whole_s, 1.0):
            log.warning(
                "engines waited %.0f of %.0f s for the slowest episode of a round; %s.order: free lets every episode "
                "go on by itself, and gives up that a run repeats to the bit",
                waited_s,
                whole_s,
                self._section,
            )


async def together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Wait for all of them; at the first that raises the others are cancelled, and have ended."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def place_of(error: Exception) -> str:
    """Return what was raised and where, such as `KeyError: 'x' (games.py line 12)`."""
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    frames = traceback.extract_tb(error.__traceback__)
    return f"{what} ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else what
