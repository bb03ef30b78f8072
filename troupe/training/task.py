"""What one kind of supervised training adds to the loop of `troupe.training.supervised`: a `SupervisedTask`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from troupe.config.supervised import GeneratingConfig, SupervisedConfig
from troupe.records import Group, Sample
from troupe.training.preparation import Prepared, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from troupe.algorithms import Batch
    from troupe.algorithms.objective import Objective
    from troupe.training.supervised import SupervisedContext


class SupervisedTask(ABC):
    """What one kind of supervised training adds to the loop."""

    name: str
    """Before metrics without a path of their own, such as sft/grad_norm."""
    head = "vocabulary"
    best: str
    """Held-out metric of the best checkpoint, unless the recipe names another."""

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """What is minimised."""

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> Group | None:
        """Return the sample as a group, or None when it cannot be trained on."""

    @abstractmethod
    def prepare(self, batch: Batch, groups: Sequence[Group], supervised: SupervisedContext) -> Batch:
        """Return the batch of one optimizer step with the columns that the objective reads."""

    def begin(self, supervised: SupervisedContext, *, steps: int) -> None:  # noqa: B027 - most lessons need nothing here
        """Prepare, with the starting weights in place, before the first step or a resume."""

    def evaluate(self, supervised: SupervisedContext) -> dict[str, float]:
        """Held-out metrics by their last name."""
        metrics = supervised.model.evaluate_loss(supervised.heldout, self.objective)
        return {name.rpartition("/")[2]: value for name, value in metrics.items() if name.rpartition("/")[2] != "loss"}

    def before_save(self, supervised: SupervisedContext) -> None:  # noqa: B027
        """Before every checkpoint."""

    def state(self) -> dict[str, Any]:
        """Return what a resume needs beside weights, step and position."""
        return {}

    def restore(self, state: dict[str, Any], supervised: SupervisedContext) -> None:  # noqa: B027
        """Take up what `state` gave."""


def prepare_task(config: SupervisedConfig, task: SupervisedTask) -> Prepared:
    """Find out all that can be known before the first process."""
    generation = config.generation if isinstance(config, GeneratingConfig) else None
    return prepare(config, metrics=generation.metrics if generation is not None else (), encode=task.encode)
