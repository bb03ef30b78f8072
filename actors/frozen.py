"""Frozen models: never trained, only asked. The reference of the KL term is one, a reward model another.

Each rank holds a whole copy and works on its shard; where it shares a GPU with others it stays in host memory
between calls.
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import Any

import torch

from troupe.actors.meters import working
from troupe.actors.policy import Policy
from troupe.actors.workers import Workers, own_address
from troupe.algorithms.packing import Batch, branch_scores
from troupe.hardware import hardware, set_up_process


class FrozenWorker:
    """One copy of a frozen model."""

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def start(
        self,
        *,
        model_path: str,
        scalar: bool,
        precision: str,
        row_tokens: int,
        logits_chunk: int,
        offload: bool,
        trust_remote_code: bool,
    ) -> None:
        """Load the model; one with a scalar head must have been trained with it."""
        set_up_process(hosts=[own_address()])
        from troupe.algorithms.reading import InferenceModel

        self._model = InferenceModel(
            model_path,
            head="scalar" if scalar else "vocabulary",
            precision=precision,
            row_tokens=row_tokens,
            logits_chunk=logits_chunk,
            trust_remote_code=trust_remote_code,
        )
        self._offload = offload
        if not offload:
            self._model.to(hardware().device)

    def outputs(self, batch: Batch, *, wanted: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        """Return [N]: the head's output at this rank's tokens; 0 where `wanted`, bool [N], is given and false."""
        with working("read"):
            if self._offload:
                self._model.to(hardware().device)
            values = self._model.outputs(batch, wanted=wanted, **options)
            if self._offload:
                self._model.to("cpu")
        return values


class FrozenModel:
    """A frozen model with weights of its own."""

    def __init__(self, workers: Workers[FrozenWorker], *, scalar: bool = False) -> None:
        self.workers = workers
        self._scalar = scalar
        self._turns = itertools.count()
        self._starting: list[Future[Any]] = []

    def start(
        self,
        model_path: str,
        *,
        precision: str,
        row_tokens: int,
        logits_chunk: int = 2**27,
        offload: bool,
        trust_remote_code: bool = False,
    ) -> None:
        """Begin loading on every rank; `ready` waits for it."""
        self._starting = self.workers.start(
            FrozenWorker.start,
            model_path=model_path,
            scalar=self._scalar,
            precision=precision,
            row_tokens=row_tokens,
            logits_chunk=logits_chunk,
            offload=offload,
            trust_remote_code=trust_remote_code,
        )

    def ready(self, timeout_s: float) -> None:
        self.workers.gather(self._starting, timeout_s, "loading the model")

    def logprobs(self, batch: Batch, *, temperature: float = 1.0, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """Return [N]: the tokens' log-probabilities; where `wanted`, bool [N], is false, 0 and no logits computed."""
        return self._outputs(batch, wanted=wanted, temperature=temperature)

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return [B]: the reward model's score of each branch."""
        return branch_scores(self._outputs(batch, reads="after"), batch.branch_ids)

    def _outputs(self, batch: Batch, *, wanted: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        shards = [shard for shard in batch.split(self.workers.size) if shard]
        # The ranks take turns to be first, so that a caller with one group at a time keeps all of them busy.
        first = next(self._turns)
        futures = [
            self.workers.submit(
                (first + place) % self.workers.size,
                FrozenWorker.outputs,
                batch.select(shard).without_columns(),
                wanted=None if wanted is None else wanted[batch.tokens_of(shard)],
                **options,
            )
            for place, shard in enumerate(shards)
        ]
        values = torch.zeros(batch.num_tokens)
        for shard, result in zip(shards, self.workers.gather(futures), strict=True):
            values[batch.tokens_of(shard)] = result
        return values

    def shutdown(self) -> None:
        self.workers.shutdown()


class PolicyAtStart:
    """The policy's own ranks under the weights they started from: without the adapter, or with the parts that are
    trained as they were. A reference at no memory, or little, of its own."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> torch.Tensor:
        """Return [N]: log-probabilities of the batch's tokens under the starting weights."""
        return self._policy.logprobs(batch, temperature=temperature, at_start=True)

    def shutdown(self) -> None:
        """Do nothing: the weights are the policy's."""


Reference = FrozenModel | PolicyAtStart
