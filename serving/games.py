"""Games of a person, or of a served model, against a run's environment: `POST /v1/games`.

Nothing is kept here: a request has all answers of a game so far, and the game is played anew up to there. It is the
same game, for an environment draws all randomness from its seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from troupe.config.rollout import EnvironmentConfig
from troupe.environments import build_environment
from troupe.environments.conversation import Conversation
from troupe.errors import TroupeError
from troupe.processes.futures import run_aside
from troupe.records import Sample
from troupe.serving.conversations import Body
from troupe.serving.openai_error import openai_error
from troupe.serving.request_body import parsed, read_body
from troupe.serving.scoring import refusal

PATIENCE_S = 60.0
"""Seconds that an environment has to play a game up to where it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Playable:
    """The environment of a run, and the samples that its games begin with."""

    config: EnvironmentConfig
    samples: Sequence[Sample]


class GameRequest(Body):
    """The body of `POST /v1/games`."""

    model: str
    """Model whose run has the environment."""
    game: int = Field(default=0, ge=0)
    """Number of the game: which sample it begins with, and its seed."""
    answers: list[str] = Field(default=[])
    """The player's answers so far."""


def games_router(playable: Mapping[str, Playable], *, max_bytes: int = 2**23) -> APIRouter:
    """Return the route `/v1/games` for the environments of these models; `max_bytes` of a body at most."""
    router = APIRouter()

    @router.post("/v1/games")
    async def play(request: Request) -> Response:
        body = await read_body(request, max_bytes)
        if isinstance(body, Response):
            return body
        try:
            asked = GameRequest.model_validate(parsed(body))
        except (ValueError, RecursionError) as error:
            return refusal(error)
        if asked.model not in playable:
            known = ", ".join(playable) or "none"
            return openai_error(404, f"{asked.model!r} has no environment to play; there are: {known}", param="model")
        game = playable[asked.model]
        try:
            async with asyncio.timeout(PATIENCE_S):  # a thread of its own, since an environment may block
                return JSONResponse(await run_aside(lambda: asyncio.run(replayed(game, asked)), name="game"))
        except TimeoutError:
            return openai_error(503, f"the environment did not answer within {PATIENCE_S:g} s; begin another game")
        except TroupeError as error:  # code that this process cannot import, say
            return openai_error(503, str(error))

    return router


async def replayed(playable: Playable, asked: GameRequest) -> dict[str, Any]:
    """Return where a game stands: its messages, whether it is over, reward and parts, and what its environment raised.

    Answers behind the end are not read. Raises ConfigError where there is no such environment here.
    """
    sample = playable.samples[asked.game % len(playable.samples)]
    game = Conversation(playable.config, build_environment(playable.config), sample, seed=asked.game)
    try:
        await game.begin()
        for answer in asked.answers:
            if not game.is_over:
                await game.answer(answer)
    finally:
        await game.close()
    return {
        "messages": game.messages,
        "over": game.is_over,
        "cut": game.is_cut,
        "reward": game.reward,
        "parts": game.parts,
        "error": None if game.error is None else f"{type(game.error).__name__}: {game.error}",
    }
