"""The policy: the trained model that generators sample from.

Verbs: logprobs, update, publish, save, load. Beside what every trained model does it sends its weights away.
"""

from __future__ import annotations

from typing import Any

import torch

from troupe.actors.generator import GeneratorWorker
from troupe.actors.generators import Generators
from troupe.actors.meters import working
from troupe.actors.trained import TrainedModel, TrainedWorker
from troupe.actors.workers import Workers
from troupe.algorithms.packing import Batch
from troupe.config.models import PolicyConfig
from troupe.errors import WorkerError, sync_error


class PolicyWorker(TrainedWorker):
    """One rank of the policy."""

    _sender: Any = None

    def connect(
        self,
        generators: Workers[GeneratorWorker],
        address: tuple[str, int],
        *,
        transport: str,
        num_receivers: int,
        timeout_s: float,
    ) -> None:
        """Open the way for weights to these generators."""
        from troupe.actors.weight_sync import WeightSender

        self._sender = WeightSender(
            self._engine,
            generators,
            transport=transport,
            host=address[0],
            port=address[1],
            num_receivers=num_receivers,
            timeout_s=timeout_s,
        )

    def publish(self) -> dict[str, int]:
        """Send the weights to the connected generators; the digest of each tensor, in rank 0."""
        with working("publish"):
            return self._sender.send()


class Policy(TrainedModel[PolicyWorker]):
    """The trained model that generators sample from."""

    def __init__(self, workers: Workers[PolicyWorker], config: PolicyConfig, *, name: str = "policy") -> None:
        super().__init__(workers, config, name=name)

    def connect(self, generators: Generators, *, transport: str, timeout_s: float) -> None:
        """Open the way for weights, once."""
        receivers = generators.workers.size * generators.config.tensor_parallel_size
        self.workers.call(
            PolicyWorker.connect,
            generators.workers,
            self._places()[0],
            transport=transport,
            num_receivers=receivers,
            timeout_s=timeout_s,
        )

    def logprobs(
        self, batch: Batch, *, temperature: float = 1.0, at_start: bool = False, in_fp32: bool = False
    ) -> torch.Tensor:
        """Return [N]: log-probabilities of the batch's tokens; `at_start`: under the weights that the policy started
        from; `in_fp32`: of the same weights, computed in fp32.
        """
        return self.outputs(batch, temperature=temperature, at_start=at_start, in_fp32=in_fp32)

    def publish(self, generators: Generators, version: int) -> dict[str, int]:
        """Give the current weights to every generator as `version` and let them go on generating; the digest of each
        tensor that was sent."""
        generators.pause()
        generators.wake("weights")
        # Every phase has its own deadline inside; this one is for a peer that died where no phase can tell.
        try:
            sent = self.workers.gather(
                self.workers.start(PolicyWorker.publish), 4 * generators.config.sync_timeout_s, "the weight sync"
            )[0]
        except WorkerError as error:
            raise sync_error(f"weight sync failed: {error}", error) from None
        if generators.sleeps:
            self.workers.call(PolicyWorker.leave)
        generators.wake("kv_cache")
        generators.receive(version)
        return dict(sent)
