"""The settings of a chat endpoint, and what can be wrong with them: address, key, limits, budget.

Everything here is checked before anything starts. Sentences about addresses and keys repeat neither, because either
may hold a secret. How an endpoint is asked is `troupe.rewards.chat_endpoint`'s.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from troupe.config.loader import Section
from troupe.secrets import name_secret

OURS = {"model", "messages", "stream", "n"}
"""Fields of a request that `options` may not set."""


class PricesConfig(Section):
    """Prices of a chat endpoint, and how much may be spent."""

    max_cost: float | None = Field(default=None, gt=0)
    """Most that may be spent, in the currency of the prices; then a judge's run stops, and a model is asked no more."""
    prompt_price: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens."""
    completion_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers."""

    @model_validator(mode="after")
    def _cost_needs_prices(self) -> PricesConfig:
        if self.max_cost is not None and not self.is_priced:
            raise ValueError(
                f"max_cost ({self.max_cost:g}) needs prices, or nothing would ever cost anything; "
                "set prompt_price and completion_price per million tokens"
            )
        return self

    @property
    def is_priced(self) -> bool:
        return self.prompt_price > 0 or self.completion_price > 0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what so many tokens cost.

        >>> PricesConfig(prompt_price=0.5, completion_price=2).cost(2_000_000, 500_000)
        2.0
        """
        return (self.prompt_price * prompt_tokens + self.completion_price * completion_tokens) / 1e6


class BudgetConfig(PricesConfig):
    """Limits of what a judge may use up before the run stops; per process and reward, since the process started."""

    max_requests: int | None = Field(default=None, ge=1)
    """Requests, retries included; null: any number."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of prompts and replies together, as the endpoint counts them."""


class ChatModelConfig(Section):
    """A model behind an OpenAI-compatible chat endpoint."""

    base_url: str
    """Address up to `/chat/completions`, such as https://api.openai.com/v1."""
    model: str
    """The model's name at the endpoint."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for an endpoint without one."""
    options: dict[str, Any] = {}
    """Further fields of the request, such as max_tokens; null leaves out one that a benchmarked model refuses."""
    max_concurrency: int = Field(default=16, ge=1)
    """Requests in flight, per process."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds that one request may take."""
    patience_s: float = Field(default=300, ge=0)
    """Seconds that an endpoint which is down, or keeps refusing, is waited for; then what it owes is missing."""
    backoff_s: float = Field(default=1, gt=0)
    """Seconds before the first retry; doubled for each further one, less up to one half at random."""


class EndpointConfig(ChatModelConfig):
    """A chat endpoint of a judge, and how it is used."""

    timeout_s: float = Field(default=60, gt=0)
    """Seconds that one request may take."""
    cache: str | None = ".cache/judgements.sqlite"
    """File that remembers replies; null: none."""
    budget: BudgetConfig = BudgetConfig()
    """What may be used up; beyond it the run stops with one sentence. Replies from the cache cost nothing."""


class EndpointModelConfig(PricesConfig, ChatModelConfig):
    """A model behind a chat endpoint that takes part in a benchmark, and what one call of the job may cost."""


def check_endpoint(config: EndpointConfig) -> None:
    """Raise ValueError for a wrong address or key; the sentences repeat neither, because they may hold a secret."""
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
    name_secret(variable)
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {variable} with the judge's key is not set; export it, "
            "or set api_key_env: null for an endpoint without a key"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"the environment variable {variable} holds spaces or letters that no key has; export it anew")
