"""Frozen models: never trained, only asked. The reference of the KL term is one, a reward model another.

Each rank holds a whole copy and works on its shard; where it shares a GPU with others it stays in host memory
between calls.
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import Any

import torch

from actors.group import Group, own_address
from actors.meters import working
from actors.policy import Policy
from algorithms.packing import Batch, last_tokens, pack
from core.hardware import hardware, set_up_process


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
        from actors.engine import load_model
        from algorithms.attention import PACKED_ATTENTION
        from algorithms.logprobs import PackedModel
        from algorithms.values import PackedScalarModel

        model = load_model(
            model_path,
            precision,
            head="scalar" if scalar else "vocabulary",
            trained_head=True,
            trust_remote_code=trust_remote_code,
        )
        self._branches = model.config._attn_implementation == PACKED_ATTENTION
        model.requires_grad_(False)
        self._packed = PackedScalarModel(model) if scalar else PackedModel(model, logits_chunk=logits_chunk)
        self._packed.eval()
        self._row_tokens, self._offload = row_tokens, offload
        if not offload:
            self._packed.to(hardware().device)

    @torch.no_grad()
    def read(self, batch: Batch, *, wanted: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        """[N]: the head's output at this rank's tokens; with `wanted`, bool [N], at those alone, and 0 elsewhere."""
        with working("read"):
            if self._offload:
                self._packed.to(hardware().device)
            values = torch.zeros(batch.num_tokens)
            for whole in pack(batch, self._row_tokens, branches=self._branches):
                row = whole if wanted is None else whole.reading(wanted)
                values[row.token_index] = self._packed(row, **options)[0].float().cpu()
            if self._offload:
                self._packed.to("cpu")
        return values


class Frozen:
    """A frozen model with weights of its own."""

    def __init__(self, group: Group[FrozenWorker], *, scalar: bool = False) -> None:
        self.group = group
        self._scalar = scalar
        self._turns = itertools.count()
        self._starting: list[Future[Any]] = []

    def start(
        self,
        model_path: str,
        *,
        precision: str,
        row_tokens: int,
        logits_chunk: int = 2**26,
        offload: bool,
        trust_remote_code: bool = False,
    ) -> None:
        """Begin loading on every rank; `ready` waits for it."""
        self._starting = self.group.start(
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
        self.group.gather(self._starting, timeout_s, "loading the model")

    def logprobs(self, batch: Batch, *, temperature: float = 1.0, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """[N]: log-probabilities of the batch's tokens; where `wanted`, bool [N], is false, 0 and no logits computed."""
        return self._read(batch, wanted=wanted, temperature=temperature)

    def scores(self, batch: Batch) -> torch.Tensor:
        """[B]: the reward model's score of each branch, read at its last token."""
        return self._read(batch, reads="after")[last_tokens(batch.branch_ids)]

    def _read(self, batch: Batch, *, wanted: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        shards = [shard for shard in batch.split(self.group.size) if shard]
        # The ranks take turns to be first, so that a caller with one group at a time keeps all of them busy.
        first = next(self._turns)
        futures = [
            self.group.submit(
                (first + place) % self.group.size,
                FrozenWorker.read,
                batch.select(shard).without_columns(),
                wanted=None if wanted is None else wanted[batch.tokens_of(shard)],
                **options,
            )
            for place, shard in enumerate(shards)
        ]
        values = torch.zeros(batch.num_tokens)
        for shard, result in zip(shards, self.group.gather(futures), strict=True):
            values[batch.tokens_of(shard)] = result
        return values

    def shutdown(self) -> None:
        self.group.shutdown()


class AdapterOff:
    """The policy without its adapter: the reference of a LoRA run, at no memory of its own."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> torch.Tensor:
        """[N]: log-probabilities of the batch's tokens under the starting weights."""
        return self._policy.logprobs(batch, temperature=temperature, adapter_off=True)

    def shutdown(self) -> None:
        """Nothing of its own to end."""


Reference = Frozen | AdapterOff
