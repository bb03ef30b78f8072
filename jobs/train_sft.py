"""SFT: make the answers of demonstrations likely, every assistant turn of a conversation included.

python jobs/train_sft.py [recipe.yaml ...] [section.field=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.algorithms.advantage_stage import with_loss_weights
from troupe.algorithms.objective import SupervisedObjective
from troupe.algorithms.packing import Batch
from troupe.config.program import run_program
from troupe.config.supervised import SFTConfig
from troupe.errors import DataError
from troupe.records import Group, Sample
from troupe.training.examples import demonstration
from troupe.training.supervised import SupervisedContext, SupervisedTask, prepare_task, train_supervised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SFTTask(SupervisedTask):
    """Cross-entropy on answers."""

    name = "sft"
    best = "nll"

    def __init__(self, config: SFTConfig) -> None:
        self._config = config
        self.objective = SupervisedObjective()

    def encode(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> Group | None:
        if not sample.fields.get("demonstration"):
            raise DataError(
                f"{sample.sample_id} has no answer to imitate; use a data set with demonstrations, or name data.demonstration_field"
            )
        group = demonstration(
            tokenizer, sample, every_turn=self._config.turns == "all", whole=self._config.prompt_weight > 0
        )
        return group if group.num_tokens <= self._config.max_length else None

    def prepare(self, batch: Batch, groups: Sequence[Group], training: SupervisedContext) -> Batch:
        return with_loss_weights(batch, "token_mean", prompt_weight=self._config.prompt_weight)

    def evaluate(self, training: SupervisedContext) -> dict[str, float]:
        heldout = with_loss_weights(training.heldout, "token_mean")
        return {"nll": training.model.evaluate_loss(heldout, self.objective)["sft/nll"]}


def train_sft(config: SFTConfig) -> None:
    train_supervised(config, SFTTask(config))


def rehearse(config: SFTConfig) -> list[str]:
    """What a dry run shows."""
    return prepare_task(config, SFTTask(config)).lines()


if __name__ == "__main__":
    run_program(train_sft, SFTConfig, "jobs/train_sft.py", rehearse=rehearse)
