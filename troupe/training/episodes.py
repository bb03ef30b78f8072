"""Episodes: conversations between the model and an environment or tools, each of which becomes one branch.

Every episode is a coroutine of its own: an answer of the model, then what its tools or its environment say to it, until
it is over. In which order the engines get what the episodes ask is `troupe.agents.turn_taking`'s. A branch holds the
model's tokens, trained, and all others, masked, in their order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from troupe.actors.generator import Request, branch_seed
from troupe.actors.generators import Generators
from troupe.agents.loop import Batch, EpisodeLoop, place_of, together
from troupe.agents.recording import TokenSequence, speakers_of
from troupe.agents.turn_taking import TurnTaking
from troupe.chat import AnyTokenizer, ChatForm, TurnEncoder, form_of
from troupe.config.agents import ToolConfig
from troupe.config.rollout import LABEL, EnvironmentConfig
from troupe.environments import Environment, SampledText, build_environment
from troupe.environments.conversation import called, checked_opening, checked_turn, outcome_of
from troupe.errors import DataError
from troupe.records import Branch, Group, Sample, Score
from troupe.training.tool_use import ToolUse

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Game(TokenSequence):
    """One branch in the making."""

    player: int
    """Its number in the batch."""
    sample: Sample
    request: Request
    """What was asked for the group: the limit of the whole game, temperature, stop."""
    seed: int
    environment: Environment | None = None
    opening: str | None = None
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    tools: dict[str, float] = field(default_factory=dict)
    """Calls of tools, and those that failed."""
    over: bool = False
    failed: bool = False

    @property
    def room(self) -> int:
        """Tokens that the game may still grow by."""
        return self.request.max_tokens - len(self.token_ids)

    def cut(self, unfinished_reward: float) -> None:
        """End it before its end."""
        self.over = True
        self.reward += unfinished_reward

    def outcome(self, *, plays: bool) -> Score:
        """Return the environment's score, where the game `plays` one, and what its tools counted."""
        own = outcome_of(self.reward, self.parts, failed=self.failed).parts if plays else {}
        return Score(value=self.reward, parts={**own, **self.tools})


class Episodes:
    """Plays the episodes of a config with the generators; an `Answers`."""

    def __init__(
        self,
        config: EnvironmentConfig,
        generators: Generators,
        reader: AnyTokenizer | ChatForm,
        tools: Sequence[ToolConfig] = (),
    ) -> None:
        self._config, self._form = config, form_of(reader)
        self._games = build_environment(config)
        self._turns = TurnEncoder(self._form)
        self._tools = ToolUse(tools, self._form, self._turns) if tools else None
        self._loop = EpisodeLoop(generators, self._play_group, section=LABEL, noun="game", rules=config)

    def submit(
        self, requests: Sequence[Request], samples: Sequence[Sample], *, alone: bool = True
    ) -> list[Future[Group]]:
        """Return a batch's games; a request's `max_tokens` bounds a game (`alone`: `EpisodeLoop.submit`)."""
        return self._loop.submit(requests, samples, alone=alone)

    def shutdown(self) -> None:
        self._loop.shutdown()
        if self._tools is not None:
            self._tools.close()

    async def _play_group(self, batch: Batch, index: int, turns: TurnTaking) -> Group:
        sample, request = batch.samples[index], batch.requests[index]
        if self._form.reads_raw(sample):
            raise DataError(
                f"{sample.sample_id} is plain text; a game needs prompts that are messages, so that its "
                "turns have roles"
            )
        games = [
            Game(player=player, sample=sample, request=request, seed=request.seed + branch)
            for branch, player in enumerate(batch.players[index])
        ]
        try:
            await together(self._begin(batch, game) for game in games)
            prompt_ids = self._open(games)
            await together(self._play_game(batch, game, prompt_ids, turns) for game in games)
        finally:
            for game in games:
                await self._close(game)
        return Group(sample=sample, prompt_ids=prompt_ids, branches=[self._branch(game) for game in games])

    async def _play_game(self, batch: Batch, game: Game, prompt_ids: Sequence[int], turns: TurnTaking) -> None:
        try:
            while not game.over:
                answer = await turns.ask(game.player, self._request(game, prompt_ids))
                game.say(answer)
                await self._reply(batch, game, answer)
        finally:
            turns.leave(game.player)

    def _open(self, group: Sequence[Game]) -> Sequence[int]:
        """Return the prompt that a sample's games share; what only some begin with is their first, masked, tokens."""
        prompt_ids = group[0].request.prompt_ids
        if all(game.opening is None for game in group):
            return prompt_ids
        for game in group:
            if not game.over:
                prompt_ids, ids = self._turns.opening(game.sample, game.opening)
                game.hear(ids, "user")
                if game.room < 1:
                    game.cut(self._config.unfinished_reward)
        return prompt_ids

    def _request(self, game: Game, prompt_ids: Sequence[int]) -> Request:
        return replace(
            game.request,
            prompt_ids=[*prompt_ids, *game.token_ids],
            num_branches=1,
            max_tokens=min(self._config.turn_tokens, game.room),
            seed=branch_seed(game.seed, game.turns, game.sample.sample_id),
        )

    def _branch(self, game: Game) -> Branch:
        """Return the branch of a game that is over; without an environment its text is the last answer's."""
        plays, form = self._config.plays, self._form
        if not game.token_ids:  # it failed before its first token, and no branch is empty
            game.hear(form.stop_ids[:1], "prompt")
        outcome = game.outcome(plays=plays)
        return game.branch(form, outcome, text_ids=game.token_ids if plays else game.last_said)

    # -- turns of the environment ---------------------------------------------------------------------------

    async def _begin(self, batch: Batch, game: Game) -> None:
        def reset() -> Any:
            game.environment = self._games.new()
            return game.environment.reset(game.sample, branch_seed(game.seed, -1, game.sample.sample_id))

        game.opening = await self._guarded(batch, game, reset, checked_opening)

    async def _reply(self, batch: Batch, game: Game, answer: Branch) -> None:
        """Let the tools that an answer calls reply to it, or else the environment."""
        results = None if self._tools is None else await self._tools.results(answer.token_ids, game.tools)
        if results is not None:
            self._go_on(game, self._turns.after_turns(game.token_ids[-1], results), speakers_of(results))
        else:
            await self._step(batch, game, answer)
        if game.over:
            await self._close(game)

    async def _step(self, batch: Batch, game: Game, answer: Branch) -> None:
        assert game.environment is not None
        step = game.environment.step
        turn = await self._guarded(batch, game, lambda: step(SampledText(answer.text, answer.raw_text)), checked_turn)
        if turn is None:
            return
        game.reward += turn.reward
        game.parts |= turn.parts
        if turn.done:
            game.over, game.finish_reason = True, answer.finish_reason
        else:
            ids = self._turns.after_answer(game.token_ids[-1], str(turn.observation))
            self._go_on(game, ids, self._turns.role)

    def _go_on(self, game: Game, ids: Sequence[int], speaker: str) -> None:
        """Add what the model reads next if it has a token left behind it, or end the game where it does not fit."""
        if game.turns < self._config.max_turns and len(ids) < game.room:
            game.hear(ids, speaker)
            return
        game.cut(self._config.unfinished_reward)

    async def _guarded(self, batch: Batch, game: Game, call: Callable[[], Any], check: Callable[[Any], T]) -> T | None:
        """Return what a call of the environment gives; where it raises, the game has failed as the recipe names it."""
        try:
            return check(await called(call, self._config.timeout_s))
        except Exception as error:
            batch.count_failure(error, self._told(game, error))
            game.over = game.failed = True
            game.reward, game.parts, game.finish_reason = self._config.error_reward, {}, "stop"
            await self._close(game)
            return None

    async def _close(self, game: Game) -> None:
        """Let the environment of a game that is over go; what it raises then changes nothing any more."""
        environment, game.environment = game.environment, None
        close = getattr(environment, "close", None)
        if close is None:
            return
        try:
            await called(close, None)
        except Exception as error:
            log.warning("%s", self._told(game, error))

    def _told(self, game: Game, error: Exception) -> str:
        return (
            f"environment {self._config.title} raised {place_of(error)} on sample {game.sample.sample_id} at turn "
            f"{game.turns}"
        )
