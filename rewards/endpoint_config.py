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


class BudgetConfig(Section):
    """What a judge may use up before the run stops; per process and reward, since the process started."""

    max_requests: int | None = Field(default=None, ge=1)
    """Requests, retries included; null: any number."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of prompts and replies together, as the endpoint counts them."""
    max_cost: float | None = Field(default=None, gt=0)
    """Cost, in the currency of the prices."""
    prompt_price: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens."""
    completion_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of replies."""

    @model_validator(mode="after")
    def _cost_needs_prices(self) -> BudgetConfig:
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

        >>> BudgetConfig(prompt_price=0.5, completion_price=2).cost(2_000_000, 500_000)
        2.0
        """
        return (self.prompt_price * prompt_tokens + self.completion_price * completion_tokens) / 1e6


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
    budget: BudgetConfig = BudgetConfig()
    """What may be used up; beyond it the run stops with one sentence. Replies from the cache cost nothing."""


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
