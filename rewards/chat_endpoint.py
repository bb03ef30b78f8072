"""Questions to an OpenAI-compatible chat endpoint: limited in number, retried, waited for, remembered on disk.

The judges in `troupe.rewards.remote` and `troupe.rewards.judge_qa` say what to ask and how to read the reply; everything that can go
wrong in between is here. An endpoint lives on one background thread, so connections, limits and counters outlast the caller's event loop.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from troupe.errors import RewardError
from troupe.records import JudgeCall, Message
from troupe.rewards.cache import ReplyCache
from troupe.rewards.endpoint_config import EndpointConfig, check_endpoint
from troupe.rewards.judges_thread import on_judges_thread
from troupe.rewards.made_calls import note_call
from troupe.rewards.outage import Outage
from troupe.secrets import public_text

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["ChatEndpoint", "EndpointConfig", "Judgement", "parse_retry_after", "spent"]

log = logging.getLogger(__name__)

T = TypeVar("T")

READ_ATTEMPTS = 2
"""How often a question is asked whose reply cannot be read."""
MAX_PAUSE_S = 30.0
"""Longest pause of the exponential back-off; a Retry-After may be longer."""
TRANSIENT = {408, 409, 425, 429}
"""Refusals that pass, beside those from 500 on."""
TOO_LONG = re.compile(r"context.?length|too long|too many tokens|maximum.{0,40}tokens|reduce the length", re.IGNORECASE)
"""How endpoints say that this one answer is longer than their model reads, which is no mistake of the recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(Generic[T]):
    """What was read from a reply, a number or a text; `value` is None when it is missing."""

    value: T | None
    cached: bool = False
    """Whether it was on disk, or being asked already, and cost nothing."""
    retries: int = 0
    tokens: int = 0
    """As the endpoint counts them, prompt and reply."""
    cost: float = 0.0
    """By the prices of the budget."""


def spent(judgements: Sequence[Judgement[Any]], *, priced: bool = False) -> dict[str, float]:
    """The parts of a score that say what its judgements took: the share that was cached, and sums of the rest."""
    parts = {
        "cached": sum(judgement.cached for judgement in judgements) / max(1, len(judgements)),
        "retries": float(sum(judgement.retries for judgement in judgements)),
        "tokens": float(sum(judgement.tokens for judgement in judgements)),
    }
    return {**parts, "cost": sum(judgement.cost for judgement in judgements)} if priced else parts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """The endpoint's answer; text None: there is none to be had."""

    text: str | None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """A request that may succeed later."""

    reason: str
    retry_after_s: float = 0.0


class ChatEndpoint:
    """Asks, and has the replies read.

    ValueError for a config that cannot work; `counters` holds requests, retries, cached, unreadable, missing, tokens, and
    cost where there are prices.
    """

    def __init__(self, config: EndpointConfig) -> None:
        check_endpoint(config)
        self.counters: dict[str, float] = defaultdict(float)
        self.is_priced = config.budget.is_priced
        self._config = config
        self._url = f"{config.base_url.rstrip('/')}/chat/completions"
        self._cache = ReplyCache(Path(config.cache)) if config.cache is not None else None
        self._outage = Outage(url=self._url, patience_s=config.patience_s)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._probe = asyncio.Lock()
        self._asking: dict[str, asyncio.Task[Judgement[Any]]] = {}

    async def ask(self, messages: Sequence[Message], read: Callable[[str], T | None]) -> Judgement[T]:
        """The judgement, read from the reply with `read`, which returns None for what it cannot read.

        RewardError when the endpoint refuses for good or the budget is used up. May be called from any event loop. A
        question has one way of being read: whoever asks it a second time meanwhile gets what the first one read.
        """
        return await asyncio.wrap_future(on_judges_thread(self._ask(messages, read)))

    # -- from here on, on the judges' thread ------------------------------------------------------------------

    async def _ask(self, messages: Sequence[Message], read: Callable[[str], T | None]) -> Judgement[T]:
        body = {**self._config.options, "model": self._config.model, "messages": list(messages)}
        question = json.dumps({"url": self._url, **body}, sort_keys=True)
        key = hashlib.sha256(question.encode()).hexdigest()
        joined = key in self._asking
        if not joined:
            task = self._asking[key] = asyncio.create_task(self._judge(key, body, read))
            task.add_done_callback(lambda done: self._asked(key, done))
        # Shielded: an answer that nobody waits for any more is paid for all the same, and goes into the cache.
        judgement = await asyncio.shield(self._asking[key])
        if joined and judgement.value is not None:
            self.counters["cached"] += 1
            return Judgement(value=judgement.value, cached=True)
        return judgement

    def _asked(self, key: str, done: asyncio.Task[Judgement[Any]]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # the askers have it; here it only counts as seen

    async def _judge(self, key: str, body: Mapping[str, Any], read: Callable[[str], T | None]) -> Judgement[T]:
        known = None if self._cache is None else await asyncio.to_thread(self._cache.get, key)
        value = None if known is None else read(known)
        if value is not None:
            self.counters["cached"] += 1
            return Judgement(value=value, cached=True)
        taken: Judgement[T] = Judgement(value=None)
        for _ in range(READ_ATTEMPTS):
            reply = await self._reply(body)
            taken = Judgement(
                value=None if reply.text is None else read(reply.text),
                retries=taken.retries + reply.retries,
                tokens=taken.tokens + reply.tokens,
                cost=taken.cost + reply.cost,
            )
            if reply.text is None:
                break
            if taken.value is not None:
                if self._cache is not None:
                    await asyncio.to_thread(self._cache.put, key, reply.text, model=self._config.model)
                return taken
            self.counters["unreadable"] += 1
            log.warning("the judge at %s said what cannot be read: %r", self._url, reply.text[-200:])
        self.counters["missing"] += 1
        return taken

    async def _reply(self, body: Mapping[str, Any]) -> _Reply:
        """Asks until there is an answer or the patience is over."""
        asked = time.monotonic()
        first_failure = math.inf
        for retries in itertools.count():
            # A judge that was given up is tried by one question at a time; the others wait for what comes of it.
            async with self._probe if self._outage.is_given_up() else self._slots:
                if self._outage.is_given_up() and self._outage.last_failure > asked:
                    break
                outcome = await self._attempt(body)
            if isinstance(outcome, _Reply):
                self._outage.end()
                return replace(outcome, retries=retries)
            self._outage.note(outcome.reason)
            first_failure = min(first_failure, self._outage.last_failure)
            pause = max(outcome.retry_after_s, self._backoff(retries))
            if not self._outage.may_wait(pause, since=first_failure):
                break
            self.counters["retries"] += 1
            await asyncio.sleep(pause)
        return _Reply(text=None, retries=retries)

    def _backoff(self, retries: int) -> float:
        """Exponential with jitter, so that many processes do not come back at the same moment."""
        return min(MAX_PAUSE_S, self._config.backoff_s * 2.0 ** min(retries, 32)) * random.uniform(0.5, 1)

    async def _attempt(self, body: Mapping[str, Any]) -> _Reply | _Failure:
        import httpx  # a third of a second of import that other rewards do not need

        self._require_budget()
        self.counters["requests"] += 1
        client = self._client  # making it reads certificates, which is not the judge's time
        requested_at, started = time.time(), time.monotonic()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                # ASCII with escapes, which also carries the half characters that a model may leave in a text.
                response = await client.post(self._url, content=json.dumps(body), headers=self._headers())
        except TimeoutError:
            reason = f"no answer within {self._config.timeout_s:g} s"
            self._note(body, reason, requested_at, started)
            return _Failure(reason=reason)
        except httpx.RequestError as error:
            reason = f"{type(error).__name__}: {error}"
            self._note(body, reason, requested_at, started)
            return _Failure(reason=reason)
        if response.is_success:
            reply = _content(response)
            cost = self._config.budget.cost(reply.prompt_tokens, reply.completion_tokens)
            # Masked at once: it goes into the cache, into data and into logs, also of other processes.
            reply = replace(reply, cost=cost, text=None if reply.text is None else public_text(reply.text))
            self._note(body, response.status_code, requested_at, started, reply)
            self.counters["tokens"] += reply.tokens
            if self.is_priced:
                self.counters["cost"] += reply.cost
            return reply
        self._note(body, response.status_code, requested_at, started)
        said = f"{response.status_code} {response.reason_phrase}: {_excerpt(public_text(response.text))}"
        if response.status_code in TRANSIENT or response.status_code >= 500:
            return _Failure(reason=said, retry_after_s=parse_retry_after(response.headers.get("retry-after")))
        if response.status_code in (400, 413, 422) and TOO_LONG.search(response.text):
            log.warning("an answer is too long for the judge at %s (%s); its judgement is missing", self._url, said)
            return _Reply(text=None)
        raise RewardError(f"the judge at {self._url} answered {said}; {self._remedy(response.status_code)}")

    def _require_budget(self) -> None:
        """RewardError where the budget is used up. Requests in flight may still exceed it by what they cost."""
        budget = self._config.budget
        for name, limit in (
            ("requests", budget.max_requests),
            ("tokens", budget.max_tokens),
            ("cost", budget.max_cost),
        ):
            if limit is not None and self.counters[name] >= limit:
                raise RewardError(
                    f"the judge at {self._url} has used up its budget: {name} {self.counters[name]:g} of budget.max_{name} "
                    f"{limit:g}; raise it and resume: what was answered is in the cache"
                )

    def _note(
        self,
        body: Mapping[str, Any],
        status: int | str,
        requested_at: float,
        started: float,
        reply: _Reply | None = None,
    ) -> None:
        known = _Reply(text=None) if reply is None else reply
        note_call(
            JudgeCall(
                host=urlsplit(self._url).netloc,
                model=self._config.model,
                messages=[
                    Message(role=turn["role"], content=public_text(turn["content"])) for turn in body["messages"]
                ],
                status=status if isinstance(status, int) else public_text(status),
                requested_at=requested_at,
                latency_s=time.monotonic() - started,
                text=known.text,
                finish_reason=known.finish_reason,
                prompt_tokens=known.prompt_tokens,
                completion_tokens=known.completion_tokens,
            )
        )

    @functools.cached_property
    def _client(self) -> httpx.AsyncClient:
        import httpx

        limits = httpx.Limits(max_connections=self._config.max_concurrency + 1)  # one more for the probe
        return httpx.AsyncClient(timeout=None, limits=limits, verify=_certificates())

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self._key()}"} if self._config.api_key_env is not None else {}
        return {"Content-Type": "application/json", **key}

    def _key(self) -> str:
        """Read for each request and kept nowhere."""
        return os.environ.get(self._config.api_key_env or "", "").strip()

    def _remedy(self, status: int) -> str:
        variable = self._config.api_key_env
        key = f"the key in the environment variable {variable}" if variable else "no key was sent (api_key_env is null)"
        if status in (401, 403):
            return f"check {key}, and whether it may use {self._config.model}" if variable else f"{key}"
        return f"check base_url, model ({self._config.model}) and options; {key if variable is None else f'{key} was sent'}"


@functools.cache
def _certificates() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()  # reading them takes a good part of a second on a busy machine; once is enough


def _content(response: httpx.Response) -> _Reply:
    """The reply and its tokens; the empty text where the answer has another form."""
    try:
        answer = response.json()
        choice = answer["choices"][0]
        text, usage = choice["message"]["content"], answer.get("usage") or {}
        total, completion = usage.get("total_tokens"), usage.get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError):
        return _Reply(text="")
    completion = completion if isinstance(completion, int) else 0
    return _Reply(
        text=text if isinstance(text, str) else "",
        finish_reason=str(reason) if (reason := choice.get("finish_reason")) else None,
        prompt_tokens=max(0, total - completion) if isinstance(total, int) else 0,
        completion_tokens=completion,
    )


def _excerpt(text: str) -> str:
    return " ".join(text.split())[:200] or "no explanation"


def parse_retry_after(header: str | None) -> float:
    """Seconds, from a number of seconds or a date; 0 for anything else."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            date = parsedate_to_datetime(header or "")
        except ValueError:
            return 0.0
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
