"""Models behind chat endpoints as contestants: a prompt goes out, the answer comes back with what it took.

Limits, retries and patience are `troupe.rewards.chat_endpoint`'s, the transport of judges; here is what a request
holds, and what of a failure is the model's own: an answer that could not be had is missing, never empty. With an
environment an answer is a whole game.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from troupe.actors.generator import branch_seed
from troupe.chat import prompt_messages
from troupe.config.endpoint import BudgetConfig, ChatModelConfig, EndpointConfig, EndpointModelConfig, PricesConfig
from troupe.config.evaluation import AnsweringConfig
from troupe.environments import Games
from troupe.environments.conversation import Conversation
from troupe.errors import ConfigError, PlayError, RewardError
from troupe.evaluation.stored_answers import AnswerLog, outcome_row
from troupe.files import now
from troupe.records import JudgeCall, Message, Sample
from troupe.rewards.chat_endpoint import ChatEndpoint
from troupe.rewards.made_calls import collected_calls

log = logging.getLogger(__name__)

REFUSALS = 3
"""Refusals for good after which a model that has answered nothing is asked no more."""


class AnsweringEndpoint:
    """A model behind an endpoint; ConfigError for an address that cannot be one, or a key that is not there."""

    def __init__(
        self, name: str, settings: EndpointModelConfig, config: AnsweringConfig, games: Games | None = None
    ) -> None:
        self.name, self._settings = name, settings
        self._games, self._environment, self._seed = games, config.environment, config.seed
        longest = config.max_response_tokens if config.environment is None else config.environment.max_turn_tokens
        given = {**config.sampling, "max_tokens": longest, **settings.options}
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
        self._failures: list[str] = []

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
        if self._environment is not None:
            asked += [self._environment.model_dump(), self._seed]
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
            self._refuse_failures(len(asked))

    async def _answer(self, sample: Sample, repeat: int, answers: AnswerLog, slots: asyncio.Semaphore) -> None:
        async with slots:  # the endpoint's own limit would let all of them past the next line before one is answered
            if self._refused < REFUSALS or self._answered:
                answers.append(await self._asked(sample, repeat))

    async def _asked(self, sample: Sample, repeat: int) -> dict[str, Any]:
        """Return the line of one question: its answer, or why there is none, and what it took."""
        reason: str | None = None
        text: str | None = None
        game = None if self._games is None else self._game(sample, repeat)
        with collected_calls() as calls:
            try:
                text = await (self._say(prompt_messages(sample), sample) if game is None else self._play(game, sample))
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
            "finish_reason": _finish_reason(last, game),
            **({} if game is None else {"outcome": outcome_row(game.outcome), "failed": game.error is not None}),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost": self._budget.cost(prompt_tokens, completion_tokens),
            "calls": len(calls),
            "failed_calls": sum(not (call.text or "").strip() for call in calls),
            "latency_s": round(last.latency_s, 3) if last is not None else None,
            "reason": reason,
            "at": now(),
        }

    # -- games ----------------------------------------------------------------------------------------------------

    def _game(self, sample: Sample, repeat: int) -> Conversation:
        """Return the game that the models of this machine play, too: the same opponent."""
        assert self._games is not None
        assert self._environment is not None
        seed = branch_seed(branch_seed(self._seed + repeat, -1, sample.sample_id), -1, sample.sample_id)
        return Conversation(self._environment, self._games, sample, seed)

    async def _say(self, messages: Sequence[Message], sample: Sample) -> str | None:
        return (await self._endpoint.ask(messages, _not_empty, asker=sample.sample_id)).value

    async def _play(self, game: Conversation, sample: Sample) -> str | None:
        """Return what was said in a game that is over; None where the model owes an answer."""
        try:
            await game.begin()
            while not game.is_over:
                text = await self._say(game.messages, sample)
                if text is None:
                    return None
                await game.answer(text)
        finally:
            await game.close()
        if game.error is not None:
            self._failures.append(f"{type(game.error).__name__}: {game.error} on sample {sample.sample_id}")
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in game.messages[game.begins_at :])

    def _refuse_failures(self, games: int) -> None:
        """Raise PlayError where more environments raised than the recipe lets."""
        rules, failures, self._failures = self._environment, self._failures, []
        if rules is None or not failures:
            return
        most = 0 if rules.on_error == "stop" else rules.max_error_fraction * games
        if len(failures) > most:
            raise PlayError(
                f"environment {rules.title} raised in {len(failures)} of {games} games of {self.name}, the last with "
                f"{failures[-1]}; mend it, or let more fail with environment.max_error_fraction"
            )
        log.warning("%s: the environment raised in %d of %d games: %s", self.name, len(failures), games, failures[-1])


def _finish_reason(last: JudgeCall | None, game: Conversation | None) -> str:
    if game is not None:
        return "length" if game.is_cut else "stop"
    return (last.finish_reason if last is not None else None) or "stop"


def _not_empty(reply: str) -> str | None:
    """Return the reply; an empty one, of a model that thought until its limit for example, is no answer."""
    return reply if reply.strip() else None
