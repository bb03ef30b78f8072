"""A reward model: give the better of two answers, or of K ranked ones, the higher score (Bradley-Terry).

    python jobs/train_reward_model.py [recipe.yaml ...] [section.field=value ...]

The score is a scalar head's output at the answer's last token; what is saved scores reference answers 0 on average.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.algorithms.advantage_stage import with_preference_pairs
from troupe.algorithms.objective import RankingObjective
from troupe.algorithms.packing import Batch, branch_scores
from troupe.algorithms.preference_losses import bradley_terry_loss, ranked_pairs
from troupe.config.program import run_program
from troupe.config.supervised import RewardModelTrainingConfig
from troupe.data import PromptStream
from troupe.evaluation.calibration import Calibration
from troupe.files import to_json, write_atomically
from troupe.records import Group, Sample
from troupe.training.examples import answer_branch, ranked_answers, require_answers
from troupe.training.supervised import SupervisedContext, SupervisedTask, prepare_task, train_supervised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RewardModelTask(SupervisedTask):
    """Bradley-Terry on ranked answers."""

    name = "reward_model"
    head = "scalar"
    best = "accuracy"

    def __init__(self, config: RewardModelTrainingConfig) -> None:
        self._config = config
        self._score_mean: float | None = None
        self.objective = RankingObjective()

    def encode(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> Group | None:
        require_answers(sample)
        return ranked_answers(tokenizer, sample, max_length=self._config.max_length)

    def prepare(self, batch: Batch, groups: Sequence[Group], training: SupervisedContext) -> Batch:
        return with_preference_pairs(batch, groups)

    def evaluate(self, training: SupervisedContext) -> dict[str, float]:
        batch = training.heldout
        scores = self._scores(training, batch)
        ranks = torch.tensor([-(score.value or 0.0) for group in training.heldout_groups for score in group.scores])
        pairs = ranked_pairs(batch.group_ids, ranks)
        _, metrics = bradley_terry_loss(scores, pairs, pairs.shares / pairs.shares.sum())
        margins = scores[pairs.winners] - scores[pairs.losers]
        calibration = Calibration.of(margins.tolist())
        write_atomically(training.run.directory / "calibration.json", to_json(calibration.bins, indent=2) + "\n")
        named = {name.rpartition("/")[2]: float(value) for name, value in metrics.items()}
        return {**named, "calibration_error": calibration.error}

    def before_save(self, training: SupervisedContext) -> None:
        """Shift the scores so that the reference answers of some training samples score 0 on average.

        They are the last of the first epoch: a model scores answers that it was trained on higher than others.
        """
        samples, count = training.context.data.train, self._config.normalise_samples
        count = min(count, len(samples))
        samples = PromptStream(samples, self._config.seed, position=len(samples) - count).take(count)
        branches = [
            Group(
                sample=group.sample,
                prompt_ids=group.prompt_ids,
                branches=[answer_branch(training.tokenizer, group, self._config.max_length)],
            )
            for sample in samples
            if (group := training.examples.encode(sample)) is not None
        ]
        if branches:
            # Of the head's bare output: a model that starts from a reward model brings its mean along.
            training.model.set_score_mean(0.0)
            self._score_mean = float(self._scores(training, Batch.from_groups(branches)).mean())
            training.model.set_score_mean(self._score_mean)

    def _scores(self, training: SupervisedContext, batch: Batch) -> torch.Tensor:
        """[B]."""
        return branch_scores(training.model.outputs(batch, reads="after"), batch.branch_ids)

    def state(self) -> dict[str, Any]:
        return {"score_mean": self._score_mean}

    def restore(self, state: dict[str, Any], training: SupervisedContext) -> None:
        self._score_mean = state["score_mean"]
        if self._score_mean is not None:
            training.model.set_score_mean(self._score_mean)


def train_reward_model(config: RewardModelTrainingConfig) -> None:
    train_supervised(config, RewardModelTask(config))


def rehearse(config: RewardModelTrainingConfig) -> list[str]:
    """What a dry run shows."""
    return prepare_task(config, RewardModelTask(config)).lines()


if __name__ == "__main__":
    run_program(train_reward_model, RewardModelTrainingConfig, "jobs/train_reward_model.py", rehearse=rehearse)
