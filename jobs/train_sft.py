"""SFT: make the answers of demonstrations likely, every assistant turn of a conversation included.

python jobs/train_sft.py [recipe.yaml ...] [section.field=value ...]
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe import algorithms, training
from troupe.chat import ChatForm
from troupe.config.program import run_program
from troupe.config.supervised import SFTConfig
from troupe.errors import DataError
from troupe.records import Group, Sample
from troupe.training.examples import demonstration
from troupe.training.task import SupervisedTask, prepare_task


class SFTTask(SupervisedTask):
    """Cross-entropy on answers."""

    name = "sft"
    best = "nll"

    def __init__(self, config: SFTConfig) -> None:
        self._config = config

    @functools.cached_property
    def objective(self) -> algorithms.SupervisedObjective:
        return algorithms.SupervisedObjective()

    def encode(self, form: ChatForm, sample: Sample) -> Group | None:
        if not sample.fields.get("demonstration"):
            raise DataError(
                f"{sample.sample_id} has no answer to imitate; use a data set with demonstrations, or name "
                f"data.demonstration_field"
            )
        group = demonstration(
            form, sample, every_turn=self._config.turns == "all", whole=self._config.prompt_weight > 0
        )
        return group if group.num_tokens <= self._config.max_length else None

    def prepare(
        self, batch: algorithms.Batch, groups: Sequence[Group], supervised: training.SupervisedContext
    ) -> algorithms.Batch:
        return algorithms.with_loss_weights(batch, "token_mean", prompt_weight=self._config.prompt_weight)

    def evaluate(self, supervised: training.SupervisedContext) -> dict[str, float]:
        heldout = algorithms.with_loss_weights(supervised.heldout, "token_mean")
        return {"nll": supervised.model.evaluate_loss(heldout, self.objective)["sft/nll"]}


def train_sft(config: SFTConfig) -> training.TrainingResult:
    """Train; return what the run left."""
    return training.train_supervised(config, SFTTask(config))


def rehearse(config: SFTConfig) -> list[str]:
    """Describe what a dry run found."""
    return prepare_task(config, SFTTask(config)).lines()


if __name__ == "__main__":
    run_program(train_sft, SFTConfig, "jobs/train_sft.py", rehearse=rehearse)
