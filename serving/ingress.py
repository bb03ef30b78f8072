"""The settings of the endpoint: bearer token, size of requests, which model, errors in OpenAI's shape.

What is asked of a model is passed on as bytes, and what the model's replica answers is passed back as it comes; this
file knows neither vLLM nor what is in a request besides the model's name. Why it is not Ray's own ingress: decision
0009.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from troupe.serving.games import Playable, games_router
from troupe.serving.messages import Message, complete, joined
from troupe.serving.openai_error import ModelUnavailable, openai_error
from troupe.serving.playground import PATHS, playground_router
from troupe.serving.request_body import parsed, read_body
from troupe.serving.request_mistakes import request_mistake
from troupe.serving.scoring import Scorer, chat_reply, scorer_card, scoring_router

log = logging.getLogger(__name__)

CARD_TIMEOUT_S = 5.0
"""Seconds that a model has to describe itself for /v1/models; after them its name alone is listed."""
OPEN_PATHS = (*PATHS, "/health")
"""Served without the token: pages without data, which a browser asks for without a header."""


class Model(Protocol):
    """A served model, wherever it runs."""

    def answer(self, path: str, content_type: str, body: bytes) -> AsyncIterator[list[Message]]:
        """Return what `ModelServer.answer` gives."""

    async def card(self) -> dict[str, Any]:
        """Return what `ModelServer.card` gives."""

    async def is_there(self) -> bool:
        """Return whether an engine of it takes requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSettings:
    """Requirements of the endpoint on every request."""

    key_hash: str | None
    """SHA-256 of the bearer token; None lets everybody in."""
    max_bytes: int
    """Largest request body."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Adapter's name -> the model that it sits on."""
    playground: bool = False
    """Whether there is a page for people."""
    games: Mapping[str, Playable] = field(default_factory=dict)
    """Model's name -> the environment of its run."""


def hash_key(key: str) -> str:
    """Return what of a token is handed on to the endpoint's processes."""
    return hashlib.sha256(key.encode()).hexdigest()


def build_app(models: Mapping[str, Model], settings: IngressSettings, *, scorers: Mapping[str, Scorer] = {}) -> FastAPI:
    """Return the HTTP application in front of `models` and `scorers`, by the names that requests call them."""
    app = FastAPI(title="Troupe", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BearerToken, key_hash=settings.key_hash)
    if scorers:
        app.include_router(scoring_router(scorers, max_bytes=settings.max_bytes))
    if settings.playground:
        app.include_router(playground_router())
    if settings.games:
        app.include_router(games_router(settings.games, max_bytes=settings.max_bytes))

    @app.get("/health")
    async def health() -> Response:
        away = [name for name, model in models.items() if not await model.is_there()]
        if away:
            return JSONResponse({"status": "unavailable", "models": away}, status_code=503)
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def list_models() -> Response:
        cards = await asyncio.gather(*(_card(name, model) for name, model in models.items()))
        adapters = [
            {**card, "id": name, "parent": card["id"], "metadata": {**card.get("metadata", {}), "base": False}}
            for card in cards
            for name, base in settings.adapters.items()
            if base == card["id"]
        ]
        return JSONResponse({"object": "list", "data": [*cards, *adapters, *map(scorer_card, scorers)]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name in scorers:
            return JSONResponse(scorer_card(name))
        base = settings.adapters.get(name, name)
        if base not in models:
            return _unknown(name)
        return JSONResponse({**await _card(base, models[base]), "id": name})

    @app.post("/v1/chat/completions")
    @app.post("/v1/completions")
    async def generate(request: Request) -> Response:
        body = await read_body(request, settings.max_bytes)
        if isinstance(body, Response):
            return body
        try:
            asked = parsed(body)
        except (ValueError, RecursionError) as error:
            return openai_error(400, f"the request's body is not valid JSON: {error}", code="invalid_json")
        if not isinstance(asked, dict):
            return openai_error(400, f"the request's body must be a JSON object, not {type(asked).__name__}")
        name = asked.get("model")
        if not isinstance(name, str):
            return openai_error(400, f"model must be one of: {_names()}", param="model")
        if name in scorers and request.url.path.endswith("/chat/completions"):
            return await chat_reply(name, scorers[name], asked)
        base = settings.adapters.get(name, name)
        if base not in models:
            return _unknown(name)
        if (mistake := request_mistake(asked)) is not None:
            return mistake
        content_type = request.headers.get("content-type", "")
        return await _cancel_on_disconnect(request, _relayed(models[base].answer(request.url.path, content_type, body)))

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def no_such_route(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return openai_error(status, f"there is no {request.method} {request.url.path} here", code="unknown_url")

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return openai_error(500, "the endpoint failed to answer; its log says why", code="internal_error")

    def _unknown(name: str) -> Response:
        message = f"The model {name[:200]!r} does not exist; there are: {_names()}"
        return openai_error(404, message, code="model_not_found", param="model")

    def _names() -> str:
        return ", ".join([*models, *settings.adapters, *scorers])

    return app


class BearerToken:
    """Lets requests in that bear the token; compares hashes, in a time that does not depend on where they differ."""

    def __init__(self, app: Any, key_hash: str | None) -> None:
        self._app, self._key_hash = app, key_hash

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self._key_hash is None or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(key.strip()).hexdigest(), self._key_hash):
            await self._app(scope, receive, send)
            return
        what = "the bearer token is wrong" if given else "the request bears no token"
        refusal = openai_error(
            401, f"{what}; send the header Authorization: Bearer $TROUPE_API_KEY", code="invalid_api_key"
        )
        refusal.headers["www-authenticate"] = "Bearer"
        await refusal(scope, receive, send)


async def _card(name: str, model: Model) -> dict[str, Any]:
    try:
        return await asyncio.wait_for(model.card(), CARD_TIMEOUT_S)
    except (TimeoutError, ModelUnavailable):
        return {"id": name, "object": "model", "created": 0, "owned_by": "troupe"}


async def _cancel_on_disconnect(request: Request, response: Coroutine[Any, Any, Response]) -> Response:
    """Return the response; cancelled when the client hangs up before there is one. A stream listens for that itself."""
    answering, hung_up = asyncio.create_task(response), asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait([answering, hung_up], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return openai_error(499, "the client hung up")
        return answering.result()
    finally:
        for task in (answering, hung_up):
            task.cancel()


async def _hung_up(request: Request) -> None:
    """Returns when the client is gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _relayed(answers: AsyncIterator[list[Message]]) -> Response:
    """Return the response that a model's replica sends: at once where it is whole already, else part by part."""
    try:
        first: list[Message] = await anext(answers, [])
        if not first or first[0]["type"] != "http.response.start":
            return openai_error(500, "the model sent no answer; its log says why", code="internal_error")
        status = int(first[0]["status"])
        headers = {name.decode(): value.decode() for name, value in first[0]["headers"]}
        body, done = joined(first), complete(first)
        if headers.get("content-type", "").startswith("text/event-stream") and not done:
            return StreamingResponse(_stream(body, answers), status, media_type="text/event-stream")
        while not done:
            messages = await anext(answers)
            body, done = body + joined(messages), complete(messages)
    except ModelUnavailable as error:
        return error.response()
    return _openai_error_body(status, body) if status >= 400 else Response(body, status, media_type="application/json")


async def _stream(first: bytes, answers: AsyncIterator[list[Message]]) -> AsyncIterator[bytes]:
    try:
        if first:
            yield first
        async for messages in answers:
            if body := joined(messages):
                yield body
    except ModelUnavailable as error:
        # The status is sent already; clients of OpenAI's API read errors in a stream as well.
        yield b"data: " + bytes(error.response().body) + b"\n\n"
    finally:
        await answers.aclose()  # type: ignore[attr-defined]


def _openai_error_body(status: int, body: bytes) -> Response:
    """vLLM's errors have a number for a code and names of their own for the type; here they get OpenAI's."""
    try:
        error = json.loads(body)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = body.decode(errors="replace")[:500] or "the model refused the request", None
    too_long = status == 400 and re.search(r"maximum context length|max_model_len|longer than the maximum", message)
    code = "context_length_exceeded" if too_long else None
    return openai_error(status, message, code=code, param=param if isinstance(param, str) else None)
