"""The critic: a trained model with a scalar head that predicts what is still to come (PPO).

Verbs: values, update, save, load. It learns from the same minibatches as the policy, with weights of its own.
"""

from __future__ import annotations

import torch

from troupe.actors.trained import TrainedModel, TrainedWorker
from troupe.actors.workers import Workers
from troupe.algorithms.packing import Batch
from troupe.config.models import PolicyConfig


class Critic(TrainedModel[TrainedWorker]):
    """V of the state before each branch token."""

    def __init__(self, workers: Workers[TrainedWorker], config: PolicyConfig) -> None:
        super().__init__(workers, config, name="value", head="scalar")

    def values(self, batch: Batch) -> torch.Tensor:
        """Return [N]: the value of the state in which each token is chosen."""
        return self.outputs(batch, reads="before")
