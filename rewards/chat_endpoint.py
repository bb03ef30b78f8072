"""Questions to an OpenAI-compatible chat endpoint: limited in number, retried, waited for, remembered on disk.

The judges in `troupe.rewards.remote` and `troupe.rewards.judge_qa` decide what is in a question and read the reply. The
openai client sends a request; waiting is ours, because its retries are counted and a judge's patience is a time that
all questions share. An endpoint lives on one background thread, so connections and limits outlast the caller's event
loop.
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
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from troupe.config.endpoint import EndpointConfig, check_endpoint
from troupe.errors import RewardError
from troupe.records import JudgeCall, Message
from troupe.rewards.cache import ReplyCache
from troupe.rewards.judges_thread import on_judges_thread
from troupe.rewards.made_calls import note_call
from troupe.rewards.outage import Outage
from troupe.secrets import public_text

if TYPE_CHECKING:
    import openai

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
    """A reading of a reply, a number or a text; `value` is None when it is missing."""

    value: T | None
    cached: bool = False
    """Whether it was on disk, or another caller's question already, and cost nothing."""
    retries: int = 0
    tokens: int = 0
    """As the endpoint counts them, prompt and reply."""
    cost: float = 0.0
    """By the prices of the budget."""


def spent(judgements: Sequence[Judgement[Any]], *, priced: bool = False) -> dict[str, float]:
    """Return the parts of a score that its judgements took: the share that was cached, and sums of the rest."""
    summed = ("retries", "tokens", "cost") if priced else ("retries", "tokens")
    sums = {name: float(sum(getattr(judgement, name) for judgement in judgements)) for name in summed}
    return {"cached": sum(judgement.cached for judgement in judgements) / max(1, len(judgements)), **sums}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One request: its call with the reply, or why it may succeed later; neither: no reply will come."""

    call: JudgeCall
    failure: str | None = None
    retry_after_s: float = 0.0


class ChatEndpoint:
    """A chat endpoint with its limits, its cache and its counters.

    ValueError for a config that cannot work; `counters` holds requests, retries, cached, unreadable, missing, tokens,
    and cost where there are prices.
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

    async def ask(
        self, messages: Sequence[Message], read: Callable[[str], T | None], *, asker: str = ""
    ) -> Judgement[T]:
        """Return the judgement, read from the reply with `read`, which returns None for what it cannot read.

        RewardError when the endpoint refuses for good or the budget is used up. May be called from any event loop. A
        question has one way of being read: a second call of the same asker meanwhile gets what the first one read.
        """
        return await asyncio.wrap_future(on_judges_thread(self._ask(messages, read, asker)))

    # -- from here on, on the judges' thread ------------------------------------------------------------------

    async def _ask(self, messages: Sequence[Message], read: Callable[[str], T | None], asker: str) -> Judgement[T]:
        body = {**self._config.options, "model": self._config.model, "messages": list(messages)}
        question = json.dumps({"url": self._url, **body}, sort_keys=True)
        key = hashlib.sha256(question.encode()).hexdigest()
        asked = f"{key} {asker}"
        joined = asked in self._asking
        if not joined:
            self._asking[asked] = asyncio.create_task(self._judge(key, body, read))
            self._asking[asked].add_done_callback(functools.partial(self._forget, asked))
        # An answer that no caller waits for any more is paid for all the same, and goes into the cache.
        judgement = await asyncio.shield(self._asking[asked])
        return self._cached(judgement.value) if joined and judgement.value is not None else judgement

    def _forget(self, asked: str, done: asyncio.Task[Judgement[Any]]) -> None:
        del self._asking[asked]
        if not done.cancelled():
            done.exception()  # the callers have it; here it only counts as seen

    def _cached(self, value: T) -> Judgement[T]:
        self.counters["cached"] += 1
        return Judgement(value=value, cached=True)

    async def _judge(self, key: str, body: Mapping[str, Any], read: Callable[[str], T | None]) -> Judgement[T]:
        known = None if self._cache is None else await asyncio.to_thread(self._cache.get, key)
        value = None if known is None else read(known)
        if value is not None:
            return self._cached(value)
        retries, calls = 0, []
        for _ in range(READ_ATTEMPTS):
            call, more = await self._reply(body)
            retries += more
            if call is None or call.text is None:
                break
            calls.append(call)
            value = read(call.text)
            if value is not None:
                if self._cache is not None:
                    await asyncio.to_thread(self._cache.put, key, call.text, model=self._config.model)
                break
            self.counters["unreadable"] += 1
            log.warning("the judge at %s said what cannot be read: %r", self._url, call.text[-200:])
        if value is None:
            self.counters["missing"] += 1
        tokens, cost = sum(map(_tokens, calls)), sum(map(self._cost, calls))
        return Judgement(value=value, retries=retries, tokens=tokens, cost=cost)

    async def _reply(self, body: Mapping[str, Any]) -> tuple[JudgeCall | None, int]:
        """Ask until there is an answer or the patience is over; return the answer and the number of retries."""
        asked = time.monotonic()
        first_failure = math.inf
        for retries in itertools.count():
            # A judge that was given up is tried by one question at a time; the others wait for what comes of it.
            async with self._probe if self._outage.is_given_up() else self._slots:
                if self._outage.is_given_up() and self._outage.last_failure > asked:
                    break
                attempt = await self._attempt(body)
            if attempt.failure is None:
                self._outage.end()
                return attempt.call, retries
            self._outage.note(attempt.failure)
            first_failure = min(first_failure, self._outage.last_failure)
            # Exponential with jitter, so that many processes do not come back at the same moment.
            backoff = min(MAX_PAUSE_S, self._config.backoff_s * 2.0 ** min(retries, 32)) * random.uniform(0.5, 1)
            pause = max(attempt.retry_after_s, backoff)
            if not self._outage.may_wait(pause, since=first_failure):
                break
            self.counters["retries"] += 1
            await asyncio.sleep(pause)
        return None, retries

    async def _attempt(self, body: Mapping[str, Any]) -> _Attempt:
        """Send one request; RewardError where the endpoint refuses for good or the budget is used up."""
        self._require_budget()
        self.counters["requests"] += 1
        call, response = await self._request(body)
        note_call(call)
        if response is None:
            return _Attempt(call=call, failure=str(call.status))
        if response.is_success:
            self.counters["tokens"] += _tokens(call)
            if self.is_priced:
                self.counters["cost"] += self._cost(call)
            return _Attempt(call=call)
        excerpt = " ".join(public_text(response.text).split())[:200] or "no explanation"
        said = f"{response.status_code} {response.reason_phrase}: {excerpt}"
        if response.status_code in TRANSIENT or response.status_code >= 500:
            retry_after_s = parse_retry_after(response.headers.get("retry-after"))
            return _Attempt(call=call, failure=said, retry_after_s=retry_after_s)
        if response.status_code in (400, 413, 422) and TOO_LONG.search(response.text):
            log.warning("an answer is too long for the judge at %s (%s); its judgement is missing", self._url, said)
            return _Attempt(call=call)
        raise RewardError(f"the judge at {self._url} answered {said}; {self._remedy(response.status_code)}")

    async def _request(self, body: Mapping[str, Any]) -> tuple[JudgeCall, Any]:
        """Return the call, for the log of calls, and its response; None where the request got none."""
        import httpx2
        import openai  # seconds of import that other rewards do not need

        turns = [Message(role=turn["role"], content=public_text(turn["content"] or "")) for turn in body["messages"]]
        client, response, trouble = self._client, None, ""  # making a client reads certificates: not the judge's time
        requested_at, started = time.time(), time.monotonic()
        headers = {"Authorization": openai.Omit()} if self._config.api_key_env is None else {}
        options = {"headers": {"Content-Type": "application/json", **headers}}
        try:
            async with asyncio.timeout(self._config.timeout_s):
                # ASCII with escapes, which also carries the half characters that a model may leave in a text.
                content = json.dumps(body).encode()
                path, form = "/chat/completions", httpx2.Response
                response = await client.post(path, content=content, cast_to=form, options=options)
        except TimeoutError:
            trouble = f"no answer within {self._config.timeout_s:g} s"
        except openai.APIStatusError as error:
            response = error.response
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            trouble = public_text(f"{type(cause).__name__}: {cause}")
        call = JudgeCall(
            host=urlsplit(self._url).netloc,
            model=self._config.model,
            messages=turns,
            status=trouble if response is None else response.status_code,
            requested_at=requested_at,
            latency_s=time.monotonic() - started,
        )
        return (_with_reply(call, response) if response is not None and response.is_success else call), response

    @functools.cached_property
    def _client(self) -> openai.AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self._config.base_url,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(timeout=None, verify=_certificates()),
        )

    async def _key(self) -> str:
        """Read the key for each request; it is kept nowhere."""
        return os.environ.get(self._config.api_key_env or "", "").strip() or "none"

    def _cost(self, call: JudgeCall) -> float:
        return self._config.budget.cost(call.prompt_tokens, call.completion_tokens)

    def _require_budget(self) -> None:
        """Raise RewardError where the budget is used up. Requests in flight may still exceed it by what they cost."""
        for name in ("requests", "tokens", "cost"):
            limit = getattr(self._config.budget, f"max_{name}")
            if limit is not None and self.counters[name] >= limit:
                raise RewardError(
                    f"the judge at {self._url} has used up its budget: {name} {self.counters[name]:g} of "
                    f"budget.max_{name} {limit:g}; raise it and resume: what was answered is in the cache"
                )

    def _remedy(self, status: int) -> str:
        variable = self._config.api_key_env
        if variable is None:
            key = sent = "no key was sent (api_key_env is null)"
        else:
            key = f"the key in the environment variable {variable}"
            key, sent = f"check {key}, and whether it may use {self._config.model}", f"{key} was sent"
        return key if status in (401, 403) else f"check base_url, model ({self._config.model}) and options; {sent}"


@functools.cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()  # reading them takes a good part of a second on a busy machine; once is enough


def _tokens(call: JudgeCall) -> int:
    return call.prompt_tokens + call.completion_tokens


def _with_reply(call: JudgeCall, response: Any) -> JudgeCall:
    """Return the call with the reply and its tokens; with the empty text where the answer has another form."""
    try:
        answer = response.json()
        choice = answer["choices"][0]
        text, usage = choice["message"]["content"], answer.get("usage") or {}
        total, completion = usage.get("total_tokens"), usage.get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError):
        return replace(call, text="")
    completion = completion if isinstance(completion, int) else 0
    return replace(
        call,
        # Masked at once: it goes into the cache, into data and into logs, also of other processes.
        text=public_text(text) if isinstance(text, str) else "",
        finish_reason=str(reason) if (reason := choice.get("finish_reason")) else None,
        prompt_tokens=max(0, total - completion) if isinstance(total, int) else 0,
        completion_tokens=completion,
    )


def parse_retry_after(header: str | None) -> float:
    """Return seconds, from a number of seconds or a date; 0 for anything else."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            date = parsedate_to_datetime(header or "")
        except ValueError:
            return 0.0
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
