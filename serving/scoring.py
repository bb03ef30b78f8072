"""Scores over HTTP: `POST /v1/score`, and a scorer as the judge that `troupe.rewards.remote` asks, in chat form.

Plain FastAPI: a scorer is any async function of conversations, the method of a Ray Serve handle or of a local object.
"""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse, Response, StreamingResponse

from troupe.config.program import user_error
from troupe.errors import DataError, TroupeError
from troupe.serving.conversations import TAGS, Conversation, ScoreRequest, TooLongError, Turn, conversation_of
from troupe.serving.openai_error import ModelUnavailable, openai_error
from troupe.serving.request_body import parsed, read_body

log = logging.getLogger(__name__)

Scorer = Callable[[Sequence[Conversation]], Awaitable[Sequence[float | None]]]
"""Conversations -> their scores, in order; None where a judgement is missing. For example `handle.score.remote`."""

MESSAGES = TypeAdapter(list[Turn])


def scoring_router(scorers: Mapping[str, Scorer], *, max_bytes: int = 2**23) -> APIRouter:
    """Return the route `/v1/score` for these scorers, by the names that requests call them; `max_bytes` of a body at
    most.
    """
    router = APIRouter()

    @router.post("/v1/score")
    async def score(request: Request) -> Response:
        body = await read_body(request, max_bytes)
        if isinstance(body, Response):
            return body
        try:
            asked = ScoreRequest.model_validate(parsed(body))
            conversations = asked.conversations()
        except (ValueError, RecursionError, DataError) as error:
            return refusal(error)
        name = asked.model or (next(iter(scorers)) if len(scorers) == 1 else "")
        if name not in scorers:
            return openai_error(
                404,
                f"there is no model {name!r} that scores; there are: {', '.join(sorted(scorers)) or 'none'}",
                code="model_not_found",
                param="model",
            )
        scores = await _scores(scorers[name], conversations)
        if isinstance(scores, Response):
            return scores
        data = _pair_data(scores) if asked.pairs is not None else _data(scores)
        return JSONResponse({"id": _id("score"), "object": "list", "created": _now(), "model": name, "data": data})

    return router


async def chat_reply(name: str, scorer: Scorer, body: Mapping[str, Any]) -> Response:
    """Return a judge's answer to the body of `POST /v1/chat/completions`: `reward:<number>` of the chat's last turn.

    What else a body sets, such as temperature or max_tokens, changes nothing.
    """
    try:
        conversation = conversation_of(MESSAGES.validate_python(body.get("messages")))
    except (ValueError, DataError) as error:
        return refusal(error)
    scores = await _scores(scorer, [conversation])
    if isinstance(scores, Response):
        return scores
    if scores[0] is None:
        return openai_error(503, f"{name} could not judge this answer now; ask again", code="judgement_missing")
    text = f"reward:{scores[0]!r}"  # repr, which reads back as the same number
    frame = {"id": _id("chatcmpl"), "created": _now(), "model": name}
    if body.get("stream"):
        return StreamingResponse(_events(frame, text), media_type="text/event-stream")
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    return JSONResponse({**frame, "object": "chat.completion", "choices": [choice]})


def scorer_card(name: str) -> dict[str, Any]:
    """Return what `/v1/models` reports of a scorer."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "troupe", "metadata": {"task": "score"}}


async def _scores(scorer: Scorer, conversations: Sequence[Conversation]) -> Sequence[float | None] | Response:
    """Return the scores, or the answer that explains why there are none."""
    try:
        return await scorer(conversations)
    except ModelUnavailable as unavailable:
        return unavailable.response()
    except Exception as raised:  # Ray hands over what a replica raised inside an error of its own
        error = user_error(raised)
        if isinstance(error, DataError):
            code = "context_length_exceeded" if isinstance(error, TooLongError) else None
            return openai_error(400, str(error), code=code)
        if isinstance(error, TroupeError):
            return openai_error(500, str(error), code="scoring_failed")
        log.exception("scoring failed")
        return openai_error(500, f"scoring failed with {type(error).__name__}; the server's log has the rest")


def refusal(error: Exception) -> Response:
    """Return 400 with the first mistake, where a body is no JSON or not what it should be."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in TAGS)
        message = first["msg"].removeprefix("Value error, ")
        return openai_error(400, f"{where}: {message}" if where else message, param=where or None)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return openai_error(400, f"the body is not JSON: {error}; send one JSON object")
    return openai_error(400, str(error), param="messages")


def _data(scores: Sequence[float | None]) -> list[dict[str, Any]]:
    return [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]


def _pair_data(scores: Sequence[float | None]) -> list[dict[str, Any]]:
    """Scores of pairs, chosen first: margin = chosen - rejected, probability = sigmoid(margin), Bradley-Terry's
    P(chosen > rejected).
    """
    pairs = []
    for index, (chosen, rejected) in enumerate(zip(scores[::2], scores[1::2], strict=True)):
        margin = None if chosen is None or rejected is None else chosen - rejected
        pair = {"chosen": chosen, "rejected": rejected, "margin": margin, "probability": _sigmoid(margin)}
        pairs.append({"index": index, "object": "score.pair", **pair})
    return pairs


def _sigmoid(margin: float | None) -> float | None:
    return None if margin is None else 0.5 * (1 + math.tanh(margin / 2))  # without overflow on either side


def _events(frame: Mapping[str, Any], text: str) -> Iterator[str]:
    """Yield the reply as a stream: one piece, its end, and the mark behind it."""
    for delta, reason in (({"role": "assistant", "content": text}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        yield f"data: {json.dumps({**frame, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _now() -> int:
    return int(time.time())
