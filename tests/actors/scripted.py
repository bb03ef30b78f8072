"""Generators in the place of an engine: they answer from a function of prompt and seed, and finish in any order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from troupe.actors.generator import Request
from troupe.chat import encode_answer
from troupe.errors import WorkerError
from troupe.records import Branch, WeightSpan

Speak = Callable[[str, random.Random], str]
"""(the prompt as text, special tokens included, a generator of the request's seed) -> answer."""


class ScriptedGenerators:
    """Satisfies what games need of `troupe.actors.generators.Generators`: a batch in, a future per request out."""

    def __init__(self, tokenizer: Any, speak: Speak, *, order_seed: int = 0) -> None:
        self.version = 0
        self.syncs = 0
        """How much newer the weights are that sample the second half of an answer."""
        self.rounds: list[list[Request]] = []
        """The requests of each batch, in the order of submission."""
        self.alone: list[bool] = []
        self._tokenizer, self._speak = tokenizer, speak
        self._order = random.Random(order_seed)

    def submit(self, requests: Sequence[Request], *, alone: bool = True) -> list[Future[list[Branch]]]:
        self.rounds.append(list(requests))
        self.alone.append(alone)
        futures: list[Future[list[Branch]]] = [Future() for _ in requests]
        threading.Thread(target=self._answer, args=(list(requests), futures), daemon=True).start()
        return futures

    def _answer(self, requests: list[Request], futures: list[Future[list[Branch]]]) -> None:
        order = list(range(len(requests)))
        self._order.shuffle(order)
        for index in order:
            futures[index].set_result([self._branch(requests[index])])

    def _branch(self, request: Request) -> Branch:
        assert request.num_branches == 1
        rng = random.Random(request.seed)
        text = self._speak(self._tokenizer.decode(list(request.prompt_ids)), rng)
        ids = encode_answer(self._tokenizer, text)
        kept = ids[: request.max_tokens]
        half = len(kept) // 2
        spans = (
            [(self.version, 0, half), (self.version + self.syncs, half, len(kept))]
            if half
            else [(self.version, 0, len(kept))]
        )
        return Branch(
            token_ids=kept,
            text=self._tokenizer.decode(kept, skip_special_tokens=True),
            logprobs=[-rng.random() for _ in kept],
            finish_reason="stop" if len(kept) == len(ids) else "length",
            weight_versions=tuple(WeightSpan(version=v, start=start, end=end) for v, start, end in spans),
        )

    in_flight = 1

    def require_alive(self) -> None:
        """Its engines do not die."""

    def late(self, what: str, waited_s: float) -> WorkerError:
        return WorkerError(f"generator rank [0] did not finish {what} within {waited_s:g} s")
