"""The address that agents speak to: one HTTP server in the driver, in which a token names the episode."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from troupe.agents.protocol import Ask, Choice, RequestRefused, answer_body, answer_stream, read_ask


class Episode(Protocol):
    """The episode behind one token."""

    async def answer(self, ask: Ask) -> tuple[list[Choice], int]:
        """Return the choices, and the tokens of the prompt."""

    def score(self, reward: Any) -> None:
        """Take the score that a program of its own reports."""


class Address:
    """The server; it lives on the event loop of the episodes."""

    def __init__(self, *, model: str, vocabulary: int) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._episodes: dict[str, Episode] = {}
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        routes = [
            Route("/v1/models", self._handled(self._models)),
            Route("/v1/chat/completions", self._handled(self._chat), methods=["POST"]),
            Route("/v1/completions", self._handled(self._text), methods=["POST"]),
            Route("/v1/score", self._handled(self._score), methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off", access_log=False)
        self._server = uvicorn.Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen."""
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """End, without waiting for agents that still ask."""
        self._server.should_exit = self._server.force_exit = True
        if self._serving is not None:
            await self._serving

    def open(self, episode: Episode) -> str:
        """Return the token of an episode that begins."""
        token = f"episode-{secrets.token_hex(16)}"
        self._episodes[token] = episode
        return token

    def close(self, token: str) -> None:
        """Forget the token: what its agent asks from here on is refused."""
        self._episodes.pop(token, None)

    def _handled(self, handler: Callable[[HTTPRequest], Awaitable[Response]]) -> Callable[[HTTPRequest], Any]:
        async def handle(request: HTTPRequest) -> Response:
            try:
                return await handler(request)
            except RequestRefused as refused:
                return JSONResponse(refused.body, status_code=refused.status)

        return handle

    def _episode(self, request: HTTPRequest) -> Episode:
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        episode = self._episodes.get(token)
        if episode is None:
            raise RequestRefused(
                "the key names no episode that is going on; give the one that the agent was given", 401
            )
        return episode

    async def _models(self, request: HTTPRequest) -> Response:
        self._episode(request)
        return JSONResponse({"object": "list", "data": [{"id": self._model, "object": "model", "owned_by": "troupe"}]})

    async def _chat(self, request: HTTPRequest) -> Response:
        return await self._answer("chat", request)

    async def _text(self, request: HTTPRequest) -> Response:
        return await self._answer("text", request)

    async def _score(self, request: HTTPRequest) -> Response:
        episode = self._episode(request)
        episode.score(await _json(request))
        return JSONResponse({})

    async def _answer(self, kind: Any, request: HTTPRequest) -> Response:
        episode = self._episode(request)
        ask = read_ask(kind, await _json(request), model=self._model, vocabulary=self._vocabulary)
        choices, prompt_tokens = await episode.answer(ask)
        if ask.stream:
            events = answer_stream(ask, choices, prompt_tokens, self._model)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(answer_body(ask, choices, prompt_tokens, self._model))


async def _json(request: HTTPRequest) -> Any:
    try:
        return await request.json()
    except ValueError:
        raise RequestRefused("the body is no JSON") from None
