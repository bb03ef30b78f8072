"""Frozen models: never trained, only asked for log-probabilities. The reference of the KL term is one.

Each rank holds a whole copy and works on its shard; where it shares a GPU with others it stays in host memory
between calls.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import torch

from actors.group import Group
from actors.policy import Policy
from algorithms.packing import Batch, pack
from core.hardware import hardware, set_up_process


class FrozenWorker:
    """One copy of a frozen model."""

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def start(
        self,
        *,
        model_path: str,
        precision: str,
        row_tokens: int,
        logits_chunk: int,
        offload: bool,
        trust_remote_code: bool,
    ) -> bool:
        """Load the model; whether it packs branches."""
        set_up_process(rank=0, world_size=1)
        from actors.engine import load_model
        from algorithms.attention import PACKED_ATTENTION
        from algorithms.logprobs import PackedModel

        model = load_model(model_path, precision, trust_remote_code=trust_remote_code)
        self._packed = PackedModel(model.requires_grad_(False), logits_chunk=logits_chunk).eval()
        self._branches = model.config._attn_implementation == PACKED_ATTENTION
        self._row_tokens, self._offload = row_tokens, offload
        if not offload:
            self._packed.to(hardware().device)
        return self._branches

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, temperature: float) -> torch.Tensor:
        """[N]: log-probabilities of this rank's tokens."""
        if self._offload:
            self._packed.to(hardware().device)
        values = torch.zeros(batch.num_tokens)
        for row in pack(batch, self._row_tokens, branches=self._branches):
            values[row.token_index] = self._packed(row, temperature=temperature)[0].float().cpu()
        if self._offload:
            self._packed.to("cpu")
        return values


class Frozen:
    """A frozen model with weights of its own."""

    def __init__(self, group: Group[FrozenWorker]) -> None:
        self.group = group
        self._starting: list[Future[Any]] = []

    def start(
        self,
        model_path: str,
        *,
        precision: str,
        row_tokens: int,
        logits_chunk: int,
        offload: bool,
        trust_remote_code: bool = False,
    ) -> None:
        """Begin loading on every rank; the first call waits for it."""
        self._starting = self.group.start(
            FrozenWorker.start,
            model_path=model_path,
            precision=precision,
            row_tokens=row_tokens,
            logits_chunk=logits_chunk,
            offload=offload,
            trust_remote_code=trust_remote_code,
        )

    def ready(self, timeout_s: float) -> None:
        self.group.gather(self._starting, timeout_s, "loading the model")

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> torch.Tensor:
        """[N]: log-probabilities of the batch's tokens."""
        shards = [shard for shard in batch.split(self.group.size) if shard]
        futures = [
            self.group.submit(rank, FrozenWorker.logprobs, batch.select(shard), temperature=temperature)
            for rank, shard in enumerate(shards)
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
