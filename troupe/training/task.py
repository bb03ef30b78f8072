"""What one kind of supervised training adds to the loop of `troupe.training.supervised`: a `SupervisedTask`."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from troupe.chat import ChatForm
from troupe.config.supervised import GeneratingConfig, SupervisedConfig
from troupe.records import Group, Sample
from troupe.training.examples import num_tokens
from troupe.training.lengths import AT_LEAST, Limit, count_left_out
from troupe.training.preparation import Prepared, prepare

if TYPE_CHECKING:
    from troupe.algorithms import Batch
    from troupe.algorithms.objective import Objective
    from troupe.training.supervised import SupervisedContext


class SupervisedTask(ABC):
    """One kind of supervised training: what it adds to the loop."""

    name: str
    """Before metrics without a path of their own, such as sft/grad_norm."""
    head = "vocabulary"
    best: str
    """Held-out metric of the best checkpoint, unless the recipe names another."""
    column = "demonstration"
    """Field of a sample that is trained on; of `answers`, those that are equal within max_length are left out, too."""

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """What is minimised."""

    @abstractmethod
    def encode(self, form: ChatForm, sample: Sample) -> Group | None:
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
    """Find out all that can be known before the first process; examples are encoded once, here."""
    generation = config.generation if isinstance(config, GeneratingConfig) else None
    prepared = prepare(config, metrics=generation.metrics if generation is not None else (), encode=task.encode)
    encoded: dict[str, Group | None] = {}
    form = prepared.form

    def excess(sample: Sample) -> int | None:
        group = encoded[sample.sample_id] = task.encode(form, sample)
        return None if group is not None else num_tokens(form, sample, task.column)

    data = prepared.data
    equal = ", or its answers are equal within it" if task.column == "answers" else ""
    limit = Limit(tokens=config.max_length, field="max_length", also=equal)
    # An epoch is one of the samples that can be used, so that their number is needed; so many steps are so many steps.
    enough = len(data.train) if config.steps is None else max(AT_LEAST, config.steps * config.batch_size)
    count_left_out(f"training samples of {data.name}", data.train, excess, limit, enough=enough)
    for name, samples in data.heldout_sets(config.evaluation.num_samples).items():
        if name not in data.weights:  # a part of the mixture's own set
            count_left_out(f"held-out samples of {name}", samples, excess, limit, enough=len(samples))
    return dataclasses.replace(prepared, encoded=encoded)
