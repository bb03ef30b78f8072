"""A reward model: give the better of two answers, or of K ranked ones, the higher score (Bradley-Terry).

    python jobs/train_reward_model.py [recipe.yaml ...] [section.field=value ...]

The score is a scalar head's output at the answer's last token; what is saved scores reference answers 0 on average.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe import algorithms, training
from troupe.chat import ChatForm
from troupe.config.program import run_program
from troupe.config.supervised import RewardModelTrainingConfig
from troupe.data import PromptStream
from troupe.evaluation.calibration import Calibration
from troupe.files import to_json, write_atomically
from troupe.records import Group, Sample
from troupe.training.examples import answer_branch, ranked_answers, require_answers
from troupe.training.task import SupervisedTask, prepare_task

if TYPE_CHECKING:
    import torch


class RewardModelTask(SupervisedTask):
    """Bradley-Terry on ranked answers."""

    name = "reward_model"
    head = "scalar"
    best = "accuracy"
    column = "answers"

    def __init__(self, config: RewardModelTrainingConfig) -> None:
        self._config = config
        self._score_mean: float | None = None

    @functools.cached_property
    def objective(self) -> algorithms.RankingObjective:
        return algorithms.RankingObjective()

    def encode(self, form: ChatForm, sample: Sample) -> Group | None:
        require_answers(sample)
        return ranked_answers(form, sample, max_length=self._config.max_length)

    def prepare(
        self, batch: algorithms.Batch, groups: Sequence[Group], supervised: training.SupervisedContext
    ) -> algorithms.Batch:
        return algorithms.with_preference_pairs(batch, groups)

    def evaluate(self, supervised: training.SupervisedContext) -> dict[str, float]:
        import torch

        batch = supervised.heldout
        scores = self._scores(supervised, batch)
        ranks = torch.tensor([-(score.value or 0.0) for group in supervised.heldout_groups for score in group.scores])
        pairs = algorithms.ranked_pairs(batch.group_ids, ranks)
        _, metrics = algorithms.bradley_terry_loss(scores, pairs, pairs.shares / pairs.shares.sum())
        margins = scores[pairs.winners] - scores[pairs.losers]
        calibration = Calibration.of(margins.tolist())
        name = "calibration.json" if supervised.part is None else f"calibration-{supervised.part}.json"
        write_atomically(supervised.run.directory / name, to_json(calibration.bins, indent=2) + "\n")
        named = {metric.rpartition("/")[2]: float(value) for metric, value in metrics.items()}
        return {**named, "calibration_error": calibration.error}

    def before_save(self, supervised: training.SupervisedContext) -> None:
        """Shift the scores so that the reference answers of some training samples score 0 on average.

        They are the last of the first epoch: a model scores answers that it was trained on higher than others.
        """
        samples, count = supervised.context.data.train, self._config.normalise_samples
        count = min(count, len(samples))
        samples = PromptStream(samples, self._config.seed, position=len(samples) - count).take(count)
        branches = [
            Group(
                sample=group.sample,
                prompt_ids=group.prompt_ids,
                branches=[answer_branch(supervised.form, group, self._config.max_length)],
            )
            for sample in samples
            if (group := supervised.examples.encode(sample)) is not None
        ]
        if branches:
            # Of the head's bare output: a model that starts from a reward model brings its mean along.
            supervised.model.set_score_mean(0.0)
            self._score_mean = float(self._scores(supervised, algorithms.Batch.from_groups(branches)).mean())
            supervised.model.set_score_mean(self._score_mean)

    def _scores(self, supervised: training.SupervisedContext, batch: algorithms.Batch) -> torch.Tensor:
        """Return [B]."""
        return algorithms.branch_scores(supervised.model.outputs(batch, reads="after"), batch.branch_ids)

    def state(self) -> dict[str, Any]:
        return {"score_mean": self._score_mean}

    def restore(self, state: dict[str, Any], supervised: training.SupervisedContext) -> None:
        self._score_mean = state["score_mean"]
        if self._score_mean is not None:
            supervised.model.set_score_mean(self._score_mean)


def train_reward_model(config: RewardModelTrainingConfig) -> training.TrainingResult:
    """Train; return what the run left."""
    return training.train_supervised(config, RewardModelTask(config))


def rehearse(config: RewardModelTrainingConfig) -> list[str]:
    """Describe what a dry run found."""
    return prepare_task(config, RewardModelTask(config)).lines()


if __name__ == "__main__":
    run_program(train_reward_model, RewardModelTrainingConfig, "jobs/train_reward_model.py", rehearse=rehearse)
