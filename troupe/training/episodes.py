"""Episodes: games between the model and an environment, many at once, each of which becomes one branch.

The games of a batch go on in rounds: one answer of the model in every game that is not over, asked of the generators in
one batch, then one turn of every environment. What is asked together is therefore a function of the games alone, and a
run repeats to the bit. A branch holds the model's tokens, trained, and the environment's, masked, in their order.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from troupe.actors.generator import Request, branch_seed
from troupe.actors.generators import Generators
from troupe.chat import AnyTokenizer, ChatForm, TurnEncoder, form_of
from troupe.config.rollout import LABEL, EnvironmentConfig
from troupe.environments import Environment, SampledText, Turn, build_environment
from troupe.errors import DataError, PlayError
from troupe.records import Branch, Group, Sample, Score, WeightSpan

log = logging.getLogger(__name__)

T = TypeVar("T")

FAILED = f"{LABEL}/failed"
"""The part that counts games whose environment raised."""


@dataclass(slots=True, kw_only=True)
class Game:
    """One branch in the making."""

    sample: Sample
    request: Request
    """What was asked for the group: the limit of the whole game, temperature, stop."""
    seed: int
    environment: Environment | None = None
    opening: str | None = None
    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[WeightSpan] = field(default_factory=list)
    turns: int = 0
    """Answers of the model so far."""
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    over: bool = False
    failed: bool = False
    finish_reason: str = "length"

    @property
    def room(self) -> int:
        """Tokens that the game may still grow by."""
        return self.request.max_tokens - len(self.token_ids)

    def hear(self, ids: Sequence[int]) -> None:
        """Add the environment's tokens: read, not trained."""
        self.token_ids += ids
        self.loss_mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def say(self, answer: Branch) -> None:
        """Add the model's tokens, with what is known of how they were sampled."""
        start = len(self.token_ids)
        self.token_ids += answer.token_ids
        self.loss_mask += [True] * len(answer.token_ids)
        assert answer.logprobs is not None  # engines give them with every answer
        self.logprobs += answer.logprobs
        self.spans += [replace(span, start=start + span.start, end=start + span.end) for span in answer.weight_versions]
        self.turns += 1

    def cut(self, unfinished_reward: float) -> None:
        """End it before its end."""
        self.over = True
        self.reward += unfinished_reward

    def outcome(self) -> Score:
        parts = {f"{LABEL}/{name}": float(value) for name, value in self.parts.items()}
        return Score(value=self.reward, parts={LABEL: self.reward, **parts, FAILED: float(self.failed)})


class Episodes:
    """Plays the games of a recipe's environment with the generators; an `Answers`."""

    def __init__(self, config: EnvironmentConfig, generators: Generators, reader: AnyTokenizer | ChatForm) -> None:
        self._config, self._generators, self._form = config, generators, form_of(reader)
        self._games = build_environment(config)
        self._turns = TurnEncoder(self._form)
        self._loop = asyncio.new_event_loop()
        """Of a thread of its own, on which all environments live: what an async one opens survives from turn to turn.
        """
        self._one_batch = asyncio.Lock()
        self._playing: set[Future[None]] = set()
        threading.Thread(target=self._loop.run_forever, name="episodes", daemon=True).start()

    def submit(
        self, requests: Sequence[Request], samples: Sequence[Sample], *, alone: bool = True
    ) -> list[Future[Group]]:
        """Return a batch's games; a request's `max_tokens` bounds a game. Batches `alone` play one after the other."""
        batch = _Batch(list(requests), list(samples))
        playing = asyncio.run_coroutine_threadsafe(self._play(batch, alone), self._loop)
        self._playing.add(playing)  # the loop itself holds tasks weakly
        playing.add_done_callback(self._playing.discard)
        return batch.groups

    def shutdown(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _play(self, batch: _Batch, alone: bool) -> None:
        try:
            if alone:
                async with self._one_batch:
                    await self._rounds(batch, alone)
            else:
                await self._rounds(batch, alone)
        except Exception as error:
            for game in (game for group in batch.games for game in group):
                await self._close(game)
            batch.fail(error)

    async def _rounds(self, batch: _Batch, alone: bool) -> None:
        for group in batch.games:
            if isinstance(group[0].sample.prompt, str):
                raise DataError(
                    f"{group[0].sample.sample_id} is plain text; a game needs prompts that are messages, so that its "
                    f"turns have roles"
                )
        games = [game for group in batch.games for game in group]
        await asyncio.gather(*(self._begin(batch, game) for game in games))
        prompts = [self._open(group) for group in batch.games]
        while True:
            batch.settle(prompts, self._form)
            playing = [
                (game, ids) for group, ids in zip(batch.games, prompts, strict=True) for game in group if not game.over
            ]
            if not playing:
                return
            answers = self._generators.submit([self._request(game, ids) for game, ids in playing], alone=alone)
            branches = await asyncio.gather(*map(asyncio.wrap_future, answers))
            await asyncio.gather(
                *(self._turn(batch, game, branch) for (game, _), (branch,) in zip(playing, branches, strict=True))
            )

    def _open(self, group: Sequence[Game]) -> Sequence[int]:
        """Return the prompt that a sample's games share; what only some begin with is their first, masked, tokens."""
        prompt_ids = group[0].request.prompt_ids
        if all(game.opening is None for game in group):
            return prompt_ids
        for game in group:
            if not game.over:
                prompt_ids, ids = self._turns.opening(game.sample, game.opening)
                game.hear(ids)
                if game.room < 1:
                    game.cut(self._config.unfinished_reward)
        return prompt_ids

    def _request(self, game: Game, prompt_ids: Sequence[int]) -> Request:
        return replace(
            game.request,
            prompt_ids=[*prompt_ids, *game.token_ids],
            num_branches=1,
            max_tokens=min(self._config.max_turn_tokens, game.room),
            seed=branch_seed(game.seed, game.turns, game.sample.sample_id),
        )

    # -- turns of the environment ---------------------------------------------------------------------------

    async def _begin(self, batch: _Batch, game: Game) -> None:
        def reset() -> Any:
            game.environment = self._games.new()
            return game.environment.reset(game.sample, branch_seed(game.seed, -1, game.sample.sample_id))

        await self._guarded(batch, game, reset, game_opening)

    async def _turn(self, batch: _Batch, game: Game, answer: Branch) -> None:
        assert game.environment is not None
        game.say(answer)
        step = game.environment.step
        turn = await self._guarded(batch, game, lambda: step(SampledText(answer.text, answer.raw_text)), checked_turn)
        if turn is None:
            return
        game.reward += turn.reward
        game.parts |= turn.parts
        if turn.done:
            game.over, game.finish_reason = True, answer.finish_reason
        else:
            self._go_on(game, str(turn.observation))
        if game.over:
            await self._close(game)

    def _go_on(self, game: Game, observation: str) -> None:
        """Add the observation if the model has a token left behind it, or end the game where it does not fit."""
        ids = self._turns.after_answer(game.token_ids[-1], observation)
        if game.turns < self._config.max_turns and len(ids) < game.room:
            game.hear(ids)
            return
        game.cut(self._config.unfinished_reward)

    async def _guarded(
        self, batch: _Batch, game: Game, call: Callable[[], Any], check: Callable[[Game, Any], T]
    ) -> T | None:
        """Return what a call of the environment gives; where it raises, the game has failed as the recipe names it."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                result = call()
                return check(game, await result if inspect.isawaitable(result) else result)
        except Exception as error:
            told = self._told(game, error)
            if self._config.on_error == "stop":
                raise PlayError(f"{told}; mend it, or let such games end with environment.on_error: outcome") from error
            log.warning("%s; the game ends with the reward %g", told, self._config.error_reward)
            game.over = game.failed = True
            game.reward, game.parts, game.finish_reason = self._config.error_reward, {}, "stop"
            await self._close(game)
            batch.failed += 1
            if batch.failed > self._config.max_error_fraction * batch.size:
                raise PlayError(
                    f"{batch.failed} of {batch.size} games failed (at most {self._config.max_error_fraction:.0%} may, "
                    f"environment.max_error_fraction); the last: {told}"
                ) from error
            return None

    async def _close(self, game: Game) -> None:
        """Let the environment of a game that is over go; what it raises then changes nothing any more."""
        environment, game.environment = game.environment, None
        close = getattr(environment, "close", None)
        if close is None:
            return
        try:
            result = close()
            if isinstance(result, Awaitable):
                await result
        except Exception as error:
            log.warning("%s", self._told(game, error))

    def _told(self, game: Game, error: Exception) -> str:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return (
            f"environment {self._config.fn} raised {what} ({Path(frame.filename).name} line {frame.lineno}) "
            f"on sample {game.sample.sample_id} at turn {game.turns}"
        )


def game_opening(game: Game, opening: Any) -> None:
    if opening is not None and not isinstance(opening, str):
        raise TypeError(f"reset must return a text or None, got a {type(opening).__name__}")
    game.opening = opening


def checked_turn(game: Game, turn: Any) -> Turn:
    if not isinstance(turn, Turn):
        raise TypeError(f"step must return a Turn, got a {type(turn).__name__}")
    return turn


class _Batch:
    """The games of one submission, and the groups that they become."""

    def __init__(self, requests: Sequence[Request], samples: Sequence[Sample]) -> None:
        self.games = [
            [Game(sample=sample, request=request, seed=request.seed + i) for i in range(request.num_branches)]
            for request, sample in zip(requests, samples, strict=True)
        ]
        self.groups: list[Future[Group]] = [Future() for _ in requests]
        self.size = sum(map(len, self.games))
        self.failed = 0

    def settle(self, prompts: Sequence[Sequence[int]], form: ChatForm) -> None:
        """Hand out the groups whose games are all over."""
        for games, prompt_ids, group in zip(self.games, prompts, self.groups, strict=True):
            if not group.done() and all(game.over for game in games):
                branches = [_branch(game, form) for game in games]
                group.set_result(Group(sample=games[0].sample, prompt_ids=prompt_ids, branches=branches))

    def fail(self, error: Exception) -> None:
        for group in self.groups:
            if not group.done():
                group.set_exception(error)


def _branch(game: Game, form: ChatForm) -> Branch:
    if not game.token_ids:  # it failed before its first token, and no branch is empty
        game.hear(form.stop_ids[:1])
    return Branch(
        token_ids=game.token_ids,
        text=form.tokenizer.decode(game.token_ids, skip_special_tokens=True),
        raw_text=form.tokenizer.decode(game.token_ids, skip_special_tokens=False),
        loss_mask=game.loss_mask,
        logprobs=game.logprobs,
        finish_reason=game.finish_reason,
        weight_versions=tuple(game.spans),
        outcome=game.outcome(),
    )
