"""A small endpoint for tests: OpenAI's API as vLLM streams it, from transformers models of a few hundred kilobytes.

It answers chats and completions token by token with log-probabilities, and lists and asks scorers like the real one.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from transformers import AutoModelForCausalLM, AutoTokenizer

from troupe.serving.games import Playable, games_router
from troupe.serving.openai_error import openai_error
from troupe.serving.playground import PATHS, playground_router
from troupe.serving.scoring import Scorer, chat_reply, scorer_card, scoring_router

Token = tuple[int, float, list[tuple[int, float]]]
"""(id, its log-probability, the five likeliest with theirs)."""


class TinyModel:
    """A causal model with its tokenizer."""

    def __init__(self, path: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def sample(self, ids: list[int], asked: Mapping[str, Any], *, endless: bool = False) -> Iterator[Token]:
        generator = torch.Generator().manual_seed(asked.get("seed") or 0)
        temperature = asked.get("temperature", 1.0)
        for _ in range(asked.get("max_tokens") or 16):
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=generator) if temperature else logprobs.argmax())
            best = logprobs.topk(5)
            yield token, float(logprobs[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            if token == self.tokenizer.eos_token_id and not endless:
                return
            ids = [*ids, token]


@dataclass
class TinyApi:
    """Models and scorers behind a bearer token."""

    models: Mapping[str, TinyModel]
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    metadata: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    games: Mapping[str, Playable] = field(default_factory=dict)
    key: str | None = None
    pause_s: float = 0.0
    """Between two tokens."""
    endless: bool = False
    """An end-of-sequence token does not end an answer; only `max_tokens` or a client that hangs up does."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of what was generated."""
    under_way: int = 0
    """Answers that are being generated."""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(playground_router())
        app.include_router(scoring_router(self.scorers))
        app.include_router(games_router(self.games))

        @app.middleware("http")
        async def token(request: Request, answer: Callable[[Request], Any]) -> Response:
            is_open = self.key is None or request.url.path in PATHS
            if is_open or request.headers.get("authorization") == f"Bearer {self.key}":
                return await answer(request)
            return openai_error(401, "the bearer token is missing or wrong")

        @app.get("/v1/models")
        async def models() -> Response:
            cards = [{"id": name, "object": "model", "metadata": self.metadata.get(name, {})} for name in self.models]
            return JSONResponse({"object": "list", "data": [*cards, *map(scorer_card, self.scorers)]})

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            if body["model"] in self.scorers:
                return await chat_reply(body["model"], self.scorers[body["model"]], body)
            model = self.models[body["model"]]
            ids = model.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
            return StreamingResponse(self._events(model, ids, body, _chat_choice), media_type="text/event-stream")

        @app.post("/v1/completions")
        async def complete(request: Request) -> Response:
            body = await request.json()
            model = self.models[body["model"]]
            ids = model.tokenizer(body["prompt"])["input_ids"]
            if len(ids) > 100:
                return openai_error(400, f"the prompt has {len(ids)} tokens; this model takes 100")
            return StreamingResponse(self._events(model, ids, body, _text_choice), media_type="text/event-stream")

        return app

    async def _events(
        self, model: TinyModel, ids: list[int], body: dict[str, Any], choice: Callable[..., dict[str, Any]]
    ) -> AsyncIterator[str]:
        self.asked.append(body)
        self.under_way += 1
        try:
            sampled: list[int] = []
            told, reason = "", "length"
            for token, logprob, best in model.sample(ids, body, endless=self.endless):
                sampled.append(token)
                text = model.tokenizer.decode(sampled, skip_special_tokens=True)
                # As vLLM: a character whose bytes are not all there is held back.
                piece = "" if text.endswith("�") else text[len(told) :]
                told += piece
                reason = "stop" if token == model.tokenizer.eos_token_id else "length"
                yield _event(choice(model.tokenizer, piece, (token, logprob, best)))
                await asyncio.sleep(self.pause_s)
            yield _event({"index": 0, "delta": {}, "text": "", "finish_reason": reason})
            yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': len(sampled)}})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.under_way -= 1

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve on loopback; gives the address."""
        server = uvicorn.Server(uvicorn.Config(self.app(), port=0, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)


def _event(choice: dict[str, Any]) -> str:
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def _chat_choice(tokenizer: Any, piece: str, token: Token) -> dict[str, Any]:
    number, logprob, best = token
    top = [_entry(tokenizer, other, value) for other, value in best]
    logprobs = {"content": [{**_entry(tokenizer, number, logprob), "top_logprobs": top}]}
    return {"index": 0, "delta": {"content": piece}, "logprobs": logprobs, "finish_reason": None}


def _entry(tokenizer: Any, token: int, logprob: float) -> dict[str, Any]:
    text = tokenizer.decode([token])
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _text_choice(tokenizer: Any, piece: str, token: Token) -> dict[str, Any]:
    number, logprob, best = token
    logprobs = {
        "tokens": [tokenizer.decode([number])],
        "token_logprobs": [logprob],
        "top_logprobs": [{tokenizer.decode([other]): value for other, value in best}],
    }
    return {"index": 0, "text": piece, "logprobs": logprobs, "finish_reason": None}
