"""The critic: a trained model with a scalar head that predicts what is still to come (PPO).

Verbs: values, update, save, load. It learns from the same minibatches as the policy, with weights of its own.
"""

from __future__ import annotations

import torch

from troupe.actors.policy import minibatches
from troupe.actors.trained import TrainedModel, TrainedWorker
from troupe.actors.workers import Workers
from troupe.algorithms.objective import ValueObjective
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.models import PolicyConfig


class Critic(TrainedModel[TrainedWorker]):
    """V of the state before each branch token."""

    def __init__(self, workers: Workers[TrainedWorker], config: PolicyConfig, *, value_clip: float | None) -> None:
        super().__init__(workers, config, name="value", head="scalar")
        self._value_clip = value_clip

    def values(self, batch: Batch) -> torch.Tensor:
        """[N]: the value of the state in which each token is chosen."""
        return self.read(batch, reads="before")

    def update(
        self, batch: Batch, settings: AlgorithmConfig, *, max_response_tokens: int, seed: int
    ) -> dict[str, float]:
        """As many steps as the policy's, on the same minibatches; needs `returns` and `old_values`."""
        steps = minibatches(batch, settings, max_response_tokens=max_response_tokens, seed=seed)
        return self.step(steps, ValueObjective(self._value_clip))
