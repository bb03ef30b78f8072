"""Questions to an OpenAI-compatible chat endpoint: limited in number, retried, waited for, remembered on disk.

The judges in `rewards.remote` say what to ask and how to read the reply; everything that can go wrong in between is
here. An endpoint lives on one background thread, so connections, limits and counters outlast the caller's event loop.
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
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field

from core.config import Section
from core.errors import RewardError
from core.records import Message
from rewards.cache import ReplyCache

if TYPE_CHECKING:
    import ssl

    import httpx

log = logging.getLogger(__name__)

READ_ATTEMPTS = 2
"""How often a question is asked whose reply cannot be read."""
MAX_PAUSE_S = 30.0
"""Longest pause of the exponential back-off; a Retry-After may be longer."""
WARNING_INTERVAL_S = 60.0
"""A judge that comes and goes is reported once in this time."""
TRANSIENT = {408, 409, 425, 429}
"""Refusals that pass, beside those from 500 on."""
TOO_LONG = re.compile(r"context.?length|too long|too many tokens|maximum.{0,40}tokens|reduce the length", re.IGNORECASE)
"""How endpoints say that this one answer is longer than their model reads, which is no mistake of the recipe."""
OURS = {"model", "messages", "stream", "n"}
"""Fields of a request that `options` may not set."""


class EndpointConfig(Section):
    """A chat endpoint and how it is used."""

    base_url: str
    """Address up to `/chat/completions`, such as https://integrate.api.nvidia.com/v1."""
    model: str
    """The judge's name at the endpoint."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for an endpoint without one."""
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it for every instance
    """Further fields of the request, such as max_tokens."""
    max_concurrency: int = Field(default=16, ge=1)
    """Requests in flight, per process."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds that one request may take."""
    patience_s: float = Field(default=300, ge=0)
    """Seconds that a judge which is down, or keeps refusing, is waited for; after them its judgements are missing."""
    backoff_s: float = Field(default=1, gt=0)
    """Seconds before the first retry; doubled for each further one, less up to one half at random."""
    cache: str | None = ".cache/judgements.sqlite"
    """File that remembers replies; null: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was read from a reply; `value` is None when it is missing."""

    value: float | None
    cached: bool = False
    """Whether it was on disk, or being asked already, and cost nothing."""
    retries: int = 0
    tokens: int = 0
    """As the endpoint counts them, prompt and reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """The endpoint's answer; text None: there is none to be had."""

    text: str | None
    tokens: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """A request that may succeed later."""

    reason: str
    retry_after_s: float = 0.0


class ChatEndpoint:
    """Asks, and reads the replies with `read`, which returns None for what it cannot read.

    ValueError for a config that cannot work; `counters` holds requests, retries, cached, unreadable, missing, tokens.
    """

    def __init__(self, config: EndpointConfig, *, read: Callable[[str], float | None]) -> None:
        _check(config)
        self.counters: Counter[str] = Counter()
        self._config, self._read = config, read
        self._url = f"{config.base_url.rstrip('/')}/chat/completions"
        self._cache = ReplyCache(Path(config.cache)) if config.cache is not None else None
        self._outage = _Outage(url=self._url, patience_s=config.patience_s)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._probe = asyncio.Lock()
        self._asking: dict[str, asyncio.Task[Judgement]] = {}

    async def ask(self, messages: Sequence[Message]) -> Judgement:
        """The judgement; RewardError when the endpoint refuses for good. May be called from any event loop."""
        asking = asyncio.run_coroutine_threadsafe(self._ask(messages), _judges_loop())
        return await asyncio.wrap_future(asking)

    # -- from here on, on the judges' thread ------------------------------------------------------------------

    async def _ask(self, messages: Sequence[Message]) -> Judgement:
        body = {**self._config.options, "model": self._config.model, "messages": list(messages)}
        question = json.dumps({"url": self._url, **body}, sort_keys=True)
        key = hashlib.sha256(question.encode()).hexdigest()
        joined = key in self._asking
        if not joined:
            task = self._asking[key] = asyncio.create_task(self._judge(key, body))
            task.add_done_callback(lambda done: self._asked(key, done))
        # Shielded: an answer that nobody waits for any more is paid for all the same, and goes into the cache.
        judgement = await asyncio.shield(self._asking[key])
        if joined and judgement.value is not None:
            self.counters["cached"] += 1
            return Judgement(value=judgement.value, cached=True)
        return judgement

    def _asked(self, key: str, done: asyncio.Task[Judgement]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # the askers have it; here it only counts as seen

    async def _judge(self, key: str, body: Mapping[str, Any]) -> Judgement:
        known = None if self._cache is None else await asyncio.to_thread(self._cache.get, key)
        value = None if known is None else self._read(known)
        if value is not None:
            self.counters["cached"] += 1
            return Judgement(value=value, cached=True)
        retries = tokens = 0
        for _ in range(READ_ATTEMPTS):
            reply = await self._reply(body)
            retries, tokens = retries + reply.retries, tokens + reply.tokens
            if reply.text is None:
                break
            value = self._read(reply.text)
            if value is not None:
                if self._cache is not None:
                    await asyncio.to_thread(self._cache.put, key, reply.text, model=self._config.model)
                return Judgement(value=value, retries=retries, tokens=tokens)
            self.counters["unreadable"] += 1
            log.warning("the judge at %s said what cannot be read: %r", self._url, reply.text[-200:])
        self.counters["missing"] += 1
        return Judgement(value=None, retries=retries, tokens=tokens)

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

        self.counters["requests"] += 1
        client = self._client  # making it reads certificates, which is not the judge's time
        try:
            async with asyncio.timeout(self._config.timeout_s):
                # ASCII with escapes, which also carries the half characters that a model may leave in a text.
                response = await client.post(self._url, content=json.dumps(body), headers=self._headers())
        except TimeoutError:
            return _Failure(reason=f"no answer within {self._config.timeout_s:g} s")
        except httpx.RequestError as error:
            return _Failure(reason=f"{type(error).__name__}: {error}")
        if response.is_success:
            text, tokens = _content(response)
            self.counters["tokens"] += tokens
            return _Reply(text=text, tokens=tokens)
        said = f"{response.status_code} {response.reason_phrase}: {_excerpt(self._without_key(response.text))}"
        if response.status_code in TRANSIENT or response.status_code >= 500:
            return _Failure(reason=said, retry_after_s=parse_retry_after(response.headers.get("retry-after")))
        if response.status_code in (400, 413, 422) and TOO_LONG.search(response.text):
            log.warning("an answer is too long for the judge at %s (%s); its judgement is missing", self._url, said)
            return _Reply(text=None)
        raise RewardError(f"the judge at {self._url} answered {said}; {self._remedy(response.status_code)}")

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

    def _without_key(self, text: str) -> str:
        return text.replace(self._key(), "<key>") if self._key() else text

    def _remedy(self, status: int) -> str:
        variable = self._config.api_key_env
        key = f"the key in the environment variable {variable}" if variable else "no key was sent (api_key_env is null)"
        if status in (401, 403):
            return f"check {key}, and whether it may use {self._config.model}" if variable else f"{key}"
        return f"check base_url, model ({self._config.model}) and options; {key if variable is None else f'{key} was sent'}"


class _Outage:
    """Since when an endpoint has not answered anybody, and whether it is still waited for."""

    def __init__(self, *, url: str, patience_s: float) -> None:
        self._url, self._patience_s = url, patience_s
        self._since: float | None = None
        self._warned = -math.inf
        self._said_lost = False
        self.last_failure = -math.inf

    def is_given_up(self) -> bool:
        return self._since is not None and time.monotonic() - self._since > self._patience_s

    def may_wait(self, pause_s: float, *, since: float) -> bool:
        """Whether a question that has failed since `since` may wait for `pause_s` more; no outage outlasts the patience."""
        first = since if self._since is None else min(since, self._since)
        may = time.monotonic() + pause_s <= first + self._patience_s
        if not may and not self._said_lost:
            log.warning(
                "the judge at %s is waited for no longer than %g s: what it does not answer is missing",
                self._url,
                self._patience_s,
            )
            self._said_lost = True
        return may

    def note(self, reason: str) -> None:
        self.last_failure = time.monotonic()
        if self._since is None:
            self._since = self.last_failure
        elif self.last_failure - self._warned > WARNING_INTERVAL_S:  # one failure alone is everyday life
            log.warning(
                "the judge at %s does not answer (%s); it is waited for up to %g s", self._url, reason, self._patience_s
            )
            self._warned = self.last_failure

    def end(self) -> None:
        if self._said_lost:
            log.warning("the judge at %s answers again", self._url)
        self._since, self._said_lost = None, False


@functools.cache
def _certificates() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()  # reading them takes a good part of a second on a busy machine; once is enough


_starting = threading.Lock()


def _judges_loop() -> asyncio.AbstractEventLoop:
    with _starting:  # two threads might ask for the first time at once
        return _started_loop()


@functools.cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="judges", daemon=True).start()
    return loop


def _check(config: EndpointConfig) -> None:
    """What can be wrong with an address or a key; the sentences repeat neither, because they may hold a secret."""
    url = urlsplit(config.base_url)
    if url.scheme not in ("http", "https") or not url.hostname or url.port == 0 or url.query or url.fragment:
        raise ValueError("argument base_url: it must be http(s)://host/path up to /chat/completions, without a query")
    if url.username is not None or url.password is not None:
        raise ValueError("argument base_url: it must not hold a password; put the key into an environment variable")
    taken = OURS & config.options.keys()
    if taken:
        raise ValueError(f"argument options: it may not set {', '.join(sorted(taken))}")
    variable = config.api_key_env
    if variable is None:
        return
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
        raise ValueError(
            "argument api_key_env: it is the NAME of an environment variable, in capitals, such as OPENAI_API_KEY, "
            "never the key itself"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {variable} with the judge's key is not set; export it, "
            "or set api_key_env: null for an endpoint without a key"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"the environment variable {variable} holds spaces or letters that no key has; export it anew")


def _content(response: httpx.Response) -> tuple[str, int]:
    """(reply, tokens used); the empty text where the answer has another form."""
    try:
        answer = response.json()
        text = answer["choices"][0]["message"]["content"]
        tokens = (answer.get("usage") or {}).get("total_tokens")
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", 0
    return text if isinstance(text, str) else "", tokens if isinstance(tokens, int) else 0


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
