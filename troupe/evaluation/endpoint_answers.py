"""Models behind chat endpoints as contestants: a prompt goes out, the answer comes back with what it took.

Limits, retries and patience are `troupe.rewards.chat_endpoint`'s, the transport of judges; here is what a request
holds, and what of a failure is the model's own: an answer that could not be had is missing, never empty.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from troupe.chat import prompt_messages
from troupe.config.endpoint import BudgetConfig, ChatModelConfig, EndpointConfig, EndpointModelConfig, PricesConfig
from troupe.config.evaluation import AnsweringConfig
from troupe.errors import ConfigError, RewardError
from troupe.evaluation.stored_answers import AnswerLog
from troupe.files import now
from troupe.records import Sample
from troupe.rewards.chat_endpoint import ChatEndpoint
from troupe.rewards.made_calls import collected_calls

log = logging.getLogger(__name__)

REFUSALS = 3
"""Refusals for good after which a model that has answered nothing is asked no more."""


class AnsweringEndpoint:
    """A model behind an endpoint; ConfigError for an address that cannot be one, or a key that is not there."""

    def __init__(self, name: str, settings: EndpointModelConfig, config: AnsweringConfig) -> None:
        self.name, self._settings = name, settings
        given = {**config.sampling, "max_tokens": config.max_response_tokens, **settings.options}
        self._options = {key: value for key, value in given.items() if value is not None}
        self._budget = BudgetConfig(**settings.model_dump(include=set(PricesConfig.model_fields)))
        same = settings.model_dump(include=set(ChatModelConfig.model_fields) - {"options"})
        try:
            # No cache: what is sampled twice must be asked twice, and the log remembers.
            endpoint = EndpointConfig(**same, options=self._options, cache=None, budget=self._budget)
            self._endpoint = ChatEndpoint(endpoint)
        except ValueError as error:
            raise ConfigError(f"endpoints.{name}: {str(error).replace('argument ', '')}") from None
        self._answered = self._refused = 0

    def question(self, sample: Sample, repeat: int) -> str:
        """Return a hash of everything that an answer depends on."""
        asked = [
            self._settings.base_url.rstrip("/"),
            self._settings.model,
            self._options,
            sample.sample_id,
            prompt_messages(sample),
            repeat,
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]

    async def answer_all(self, samples: Sequence[Sample], repeats: int, answers: AnswerLog) -> None:
        """Ask whatever `answers` lacks, as many at once as the endpoint allows; each answer is on disk at once."""
        known = answers.known()
        for repeat in range(repeats):  # one after the other: two equal questions at one moment would get one answer
            asked = [sample for sample in samples if self.question(sample, repeat) not in known]
            if asked:
                log.info("%s answers %d prompts", self.name, len(asked))
            slots = asyncio.Semaphore(self._settings.max_concurrency)
            await asyncio.gather(*(self._answer(sample, repeat, answers, slots) for sample in asked))

    async def _answer(self, sample: Sample, repeat: int, answers: AnswerLog, slots: asyncio.Semaphore) -> None:
        async with slots:  # the endpoint's own limit would let all of them past the next line before one is answered
            if self._refused < REFUSALS or self._answered:
                answers.append(await self._asked(sample, repeat))

    async def _asked(self, sample: Sample, repeat: int) -> dict[str, Any]:
        """Return the line of one question: its answer, or why there is none, and what it took."""
        reason: str | None = None
        text: str | None = None
        with collected_calls() as calls:
            try:
                text = (await self._endpoint.ask(prompt_messages(sample), _not_empty)).value
            except RewardError as error:
                reason = str(error).replace("the judge at", "the model at", 1)
                self._refused += 1
                if self._refused <= REFUSALS:
                    log.warning("%s: %s", self.name, reason)
        self._answered += text is not None
        last = calls[-1] if calls else None
        if text is None and reason is None and last is not None:
            reason = "the reply was empty" if last.text is not None else str(last.status)
        prompt_tokens = sum(call.prompt_tokens for call in calls)
        completion_tokens = sum(call.completion_tokens for call in calls)
        return {
            "question": self.question(sample, repeat),
            "sample_id": sample.sample_id,
            "repeat": repeat,
            "text": text,
            "finish_reason": (last.finish_reason if last is not None else None) or "stop",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost": self._budget.cost(prompt_tokens, completion_tokens),
            "calls": len(calls),
            "failed_calls": sum(not (call.text or "").strip() for call in calls),
            "latency_s": round(last.latency_s, 3) if last is not None else None,
            "reason": reason,
            "at": now(),
        }


def _not_empty(reply: str) -> str | None:
    """Return the reply; an empty one, of a model that thought until its limit for example, is no answer."""
    return reply if reply.strip() else None
