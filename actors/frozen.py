"""Frozen models: never trained, only asked. The reference of the KL term is one, a reward model another.

Each rank holds a whole copy and works on its shard; where it shares a GPU with others it stays in host memory
between calls.
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from troupe.actors.meters import working
from troupe.actors.policy import Policy
from troupe.actors.workers import Workers, own_address
from troupe.algorithms.packing import Batch, branch_scores
from troupe.hardware import hardware, set_up_process


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSettings:
    """A frozen model and the way it is read."""

    model_path: str
    scalar: bool
    precision: str
    row_tokens: int
    logits_chunk: int
    offload: bool
    """Whether it stays in host memory between calls."""
    trust_remote_code: bool


class FrozenWorker:
    """One copy of a frozen model."""

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._model: Any = None

    def start(self, settings: FrozenSettings) -> None:
        """Load the model; one with a scalar head must have been trained with it."""
        set_up_process(hosts=[own_address()])
        from troupe.algorithms.reading import InferenceModel

        self._model = InferenceModel(
            settings.model_path,
            head="scalar" if settings.scalar else "vocabulary",
            precision=settings.precision,
            row_tokens=settings.row_tokens,
            logits_chunk=settings.logits_chunk,
            trust_remote_code=settings.trust_remote_code,
        )
        if not settings.offload:
            self._model.to(hardware().device)

    def outputs(
        self, settings: FrozenSettings, batch: Batch, *, wanted: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """Return [N]: the head's output at this rank's tokens; 0 where `wanted`, bool [N], is given and false."""
        if self._model is None:  # Ray started this process again and repeats the call
            self.start(settings)
        with working("read"):
            if settings.offload:
                self._model.to(hardware().device)
            values: torch.Tensor = self._model.outputs(batch, wanted=wanted, **options)
            if settings.offload:
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
        self._settings = FrozenSettings(
            model_path=model_path,
            scalar=self._scalar,
            precision=precision,
            row_tokens=row_tokens,
            logits_chunk=logits_chunk,
            offload=offload,
            trust_remote_code=trust_remote_code,
        )
        self._starting = self.workers.start(FrozenWorker.start, self._settings)

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
                self._settings,
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
