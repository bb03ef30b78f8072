"""A game as a conversation of messages: with a model behind an address, or with a person.

Games of the engines here are token ids (`troupe.training.episodes`); both call an environment by `called` and make its
outcome by `outcome_of`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from troupe.chat import prompt_messages
from troupe.config.rollout import LABEL, EnvironmentConfig
from troupe.environments import Environment, Games, SampledText, Turn
from troupe.processes.futures import contained
from troupe.records import Message, Sample, Score

log = logging.getLogger(__name__)

FAILED = f"{LABEL}/failed"
"""The part that counts games whose environment raised."""


async def called(call: Callable[[], Any], timeout_s: float | None) -> Any:
    """Return what a method of an environment gives, awaited where it is async."""

    async def result_of() -> Any:
        result = call()
        return await result if inspect.isawaitable(result) else result

    async with asyncio.timeout(timeout_s):
        return await contained(result_of())


def checked_opening(opening: Any) -> str | None:
    """Return what `reset` gave; TypeError where that is no text."""
    if opening is not None and not isinstance(opening, str):
        raise TypeError(f"reset must return a text or None, got a {type(opening).__name__}")
    return opening


def checked_turn(turn: Any) -> Turn:
    """Return what `step` gave; TypeError where that is no Turn."""
    if not isinstance(turn, Turn):
        raise TypeError(f"step must return a Turn, got a {type(turn).__name__}")
    return turn


def outcome_of(reward: float, parts: Mapping[str, float], *, failed: bool) -> Score:
    """Return the score of a game."""
    named = {f"{LABEL}/{name}": float(value) for name, value in parts.items()}
    return Score(value=reward, parts={LABEL: reward, **named, FAILED: float(failed)})


class Conversation:
    """One game. Where its environment raises, it has failed with the config's `error_reward`."""

    def __init__(self, config: EnvironmentConfig, games: Games, sample: Sample, seed: int) -> None:
        self._config, self._games, self._sample, self._seed = config, games, sample, seed
        self._environment: Environment | None = None
        self.messages: list[Message] = prompt_messages(sample)
        self.begins_at = len(self.messages)
        """Messages of the prompt; the others are the game's."""
        self.turns = 0
        """Answers so far."""
        self.reward, self.parts = 0.0, dict[str, float]()
        self.is_over = self.is_cut = False
        self.error: Exception | None = None
        """What the environment raised."""

    @property
    def outcome(self) -> Score:
        """The score so far."""
        return outcome_of(self.reward, self.parts, failed=self.error is not None)

    async def begin(self) -> None:
        """Set the game up; an opening of the environment is a user's message behind the prompt."""

        def reset() -> Any:
            self._environment = self._games.new()
            return self._environment.reset(self._sample, self._seed)

        opening = await self._guarded(reset, checked_opening)
        if opening is not None:
            self.messages.append({"role": "user", "content": opening})

    async def answer(self, text: str) -> None:
        """Take the player's answer, and add the environment's."""
        assert self._environment is not None
        assert not self.is_over
        step = self._environment.step
        self.turns += 1
        self.messages.append({"role": "assistant", "content": text})
        turn = await self._guarded(lambda: step(SampledText(text, text)), checked_turn)
        if turn is None:
            return
        self.reward += turn.reward
        self.parts |= turn.parts
        if turn.observation is not None:
            self.messages.append({"role": "user", "content": turn.observation})
        if turn.done or self.turns == self._config.max_turns:
            self.is_over, self.is_cut = True, not turn.done
            self.reward += self._config.unfinished_reward if self.is_cut else 0.0
            await self.close()

    async def close(self) -> None:
        """Let the environment go; what it raises then changes nothing any more."""
        close, self._environment = getattr(self._environment, "close", None), None
        if close is None:
            return
        try:
            await called(close, self._config.timeout_s)
        except Exception as error:
            log.warning("environment %s raised at its close: %r", self._config.title, error)

    async def _guarded(self, call: Callable[[], Any], check: Callable[[Any], Any]) -> Any:
        try:
            return check(await called(call, self._config.timeout_s))
        except Exception as error:
            self.is_over, self.error = True, error
            self.reward, self.parts = self._config.error_reward, {}
            await self.close()
            return None
