"""The policy: the model that is trained. A worker per rank, and the facade that the jobs hold.

Verbs: logprobs, update, publish, save, load. The facade splits a batch into minibatches and shards; a worker
sees only its shard and talks to its peers through ZeRO's collectives.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch

from actors.generator import Generators, GeneratorWorker
from actors.group import Group, own_address
from actors.objective import Objective, PolicyObjective, with_loss_weights
from algorithms.packing import Batch
from core.errors import SyncError, WorkerError
from core.hardware import set_up_process
from core.recipes import AlgorithmConfig, PolicyConfig


class PolicyWorker:
    """One rank of the trained model."""

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._engine: Any = None
        self._sender: Any = None
        self._away = False

    def address(self) -> tuple[str, int]:
        """A host and a free port of this rank's machine, for a rendezvous."""
        host = own_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def devices(self) -> tuple[str, list[str]]:
        """(machine, GPU ids) of this rank, for a generator that shares them."""
        import os

        return own_address(), [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]

    def start(
        self,
        address: tuple[str, int],
        *,
        model_path: str,
        config: PolicyConfig,
        total_steps: int,
        seed: int,
        trust_remote_code: bool,
    ) -> dict[str, Any]:
        """Join the other ranks and load the model; facts about it."""
        set_up_process(rank=self.rank, world_size=self.world_size, master_address=address[0], master_port=address[1])
        from transformers import AutoTokenizer

        from actors.engine import Engine, prepare_extension
        from core.checkpoint import model_identity

        prepare_extension()
        self._engine = Engine(
            model_path, config, total_steps=total_steps, trust_remote_code=trust_remote_code, seed=seed
        )
        self._tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        shapes = self._engine.weight_shapes()
        return {
            "parameters": sum(int(torch.Size(shape).numel()) for _, _, shape in shapes),
            "bytes": sum(int(torch.Size(shape).numel()) * dtype.itemsize for _, dtype, shape in shapes),
            "identity": model_identity(self._engine.model.config.to_dict(), len(self._tokenizer)),
            "packs_branches": self._engine.branches,
        }

    def connect(
        self,
        generators: Group[GeneratorWorker],
        address: tuple[str, int],
        *,
        transport: str,
        num_receivers: int,
        timeout_s: float,
    ) -> None:
        """Open the way for weights to these generators."""
        from actors.weight_sync import WeightSender

        self._sender = WeightSender(
            self._engine,
            generators,
            transport=transport,
            host=address[0],
            port=address[1],
            num_receivers=num_receivers,
            timeout_s=timeout_s,
        )

    def logprobs(self, batch: Batch, *, temperature: float, adapter_off: bool = False) -> torch.Tensor:
        """[N]: log-probabilities of this rank's tokens."""
        self._back()
        with self._engine.adapter_off() if adapter_off else contextlib.nullcontext():
            return self._engine.logprobs(batch, temperature=temperature)

    def update(
        self, minibatches: Sequence[Batch], *, objective: Objective, temperature: float
    ) -> list[dict[str, float]]:
        """One optimizer step per minibatch; the metrics of each."""
        self._back()
        return [
            self._engine.step(batch, objective, temperature=temperature, entropy_grad=objective.entropy_grad)
            for batch in minibatches
        ]

    def publish(self) -> None:
        """Send the weights to the connected generators."""
        self._sender.send()

    def leave(self) -> None:
        """Free the device for the generators that share it."""
        self._engine.offload()
        self._away = True

    def save(self, directory: str, *, trainer_state: bool) -> None:
        self._back()
        self._engine.save(directory, self._tokenizer, trainer_state=trainer_state)

    def load(self, directory: str) -> None:
        self._engine.load(directory)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _back(self) -> None:
        if self._away:
            self._engine.reload()
            self._away = False


class Policy:
    """The trained model, whatever number of ranks holds it."""

    def __init__(self, group: Group[PolicyWorker], config: PolicyConfig) -> None:
        self.group = group
        self.config = config
        self.facts: dict[str, Any] = {}

    def start(self, model_path: str, *, total_steps: int, seed: int, trust_remote_code: bool = False) -> Future[Any]:
        """Begin loading on every rank; `ready` waits for it."""
        address = self.group.gather(
            [self.group.submit(0, PolicyWorker.address)], self.config.init_timeout_s, "its start"
        )[0]
        self._starting = self.group.start(
            PolicyWorker.start,
            address,
            model_path=model_path,
            config=self.config,
            total_steps=total_steps,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
        return self._starting[0]

    def ready(self) -> None:
        self.facts = self.group.gather(self._starting, self.config.init_timeout_s, "loading the model")[0]

    def connect(self, generators: Generators, *, transport: str, timeout_s: float) -> None:
        """Open the way for weights, once."""
        address = self.group.gather([self.group.submit(0, PolicyWorker.address)])[0]
        receivers = generators.group.size * generators.config.tensor_parallel_size
        self.group.call(
            PolicyWorker.connect,
            generators.group,
            address,
            transport=transport,
            num_receivers=receivers,
            timeout_s=timeout_s,
        )

    def logprobs(self, batch: Batch, *, temperature: float = 1.0, adapter_off: bool = False) -> torch.Tensor:
        """[N]: log-probabilities of the batch's tokens, computed on all ranks."""
        shards = batch.split(self.group.size)
        results = self.group.scatter(
            PolicyWorker.logprobs,
            [_slim(batch.select(shard)) for shard in shards],
            temperature=temperature,
            adapter_off=adapter_off,
        )
        values = torch.zeros(batch.num_tokens)
        for shard, result in zip(shards, results, strict=True):
            values[batch.tokens_of(shard)] = result
        return values

    def update(
        self, batch: Batch, settings: AlgorithmConfig, *, temperature: float, max_response_tokens: int, seed: int
    ) -> dict[str, float]:
        """`epochs` passes of `minibatches` optimizer steps over the batch; mean metrics, and those of the first step
        as `first/...` (before it the policy is still the one that sampled)."""
        steps = [
            with_loss_weights(batch.select(part), settings.aggregation, max_response_tokens=max_response_tokens)
            for epoch in range(settings.epochs)
            for part in _minibatches(batch, settings.minibatches, seed=seed * settings.epochs + epoch)
        ]
        return self.step(steps, PolicyObjective(settings), temperature=temperature)

    def step(self, steps: Sequence[Batch], objective: Objective, *, temperature: float = 1.0) -> dict[str, float]:
        """One optimizer step per batch (with `loss_weights`), each sharded over the ranks by tokens; mean metrics."""
        sharded = [[batch.select(shard) for shard in batch.split(self.group.size)] for batch in steps]
        by_rank = [list(shards) for shards in zip(*sharded, strict=True)]
        results = self.group.scatter(PolicyWorker.update, by_rank, objective=objective, temperature=temperature)[0]
        names = {name for metrics in results for name in metrics}
        means = {name: sum(metrics.get(name, 0.0) for metrics in results) / len(results) for name in names}
        return {name if "/" in name else f"policy/{name}": value for name, value in means.items()}

    def publish(self, generators: Generators, version: int) -> None:
        """Give the current weights to every generator as `version` and let them go on generating."""
        generators.pause()
        generators.wake("weights")
        # Every phase has its own deadline inside; this one is for a peer that died where no phase can tell.
        try:
            self.group.gather(
                self.group.start(PolicyWorker.publish), 4 * generators.config.sync_timeout_s, "the weight sync"
            )
        except WorkerError as error:
            raise SyncError(f"weight sync failed: {error}") from None
        if generators.sleeps:
            self.group.call(PolicyWorker.leave)
        generators.wake("kv_cache")
        generators.receive(version)

    def save(self, directory: str, *, trainer_state: bool = True) -> None:
        """Write Hugging Face format and, unless told otherwise, what resuming needs."""
        self.group.call(PolicyWorker.save, directory, trainer_state=trainer_state)

    def load(self, directory: str) -> None:
        """Continue from what `save` wrote."""
        self.group.call(PolicyWorker.load, directory)

    def shutdown(self) -> None:
        self.group.shutdown()


def _minibatches(batch: Batch, count: int, *, seed: int) -> list[list[int]]:
    """Group indices of each minibatch, drawn by seed; as equal in number as can be."""
    order = torch.randperm(batch.num_groups, generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(count, batch.num_groups)
    bounds = [len(order) * part // count for part in range(count + 1)]
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def _slim(batch: Batch) -> Batch:
    """Without columns, which a forward pass does not read."""
    return Batch(
        prompt_ids=batch.prompt_ids,
        prompt_lengths=batch.prompt_lengths,
        branch_counts=batch.branch_counts,
        branch_lengths=batch.branch_lengths,
        token_ids=batch.token_ids,
    )
