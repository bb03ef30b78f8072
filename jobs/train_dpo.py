"""DPO: make the better of two answers likelier than the worse one, beside what the starting model thinks of them.

    python jobs/train_dpo.py [recipe.yaml ...] [section.field=value ...]

Chosen and rejected are branches of one prompt, which is computed once. The reference's log-probabilities are computed
before the first step, when the policy still is its own reference.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe import algorithms, training
from troupe.chat import ChatForm
from troupe.config.program import run_program
from troupe.config.supervised import DPOConfig
from troupe.errors import NumericalError
from troupe.records import Group, Sample
from troupe.runs.fingerprint import tokenizer_fingerprint, weights_fingerprint
from troupe.training.examples import ranked_answers, require_answers
from troupe.training.task import SupervisedTask, prepare_task

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""How far the first loss may be from that of a policy which is its own reference: bf16 rounds by row."""


class DPOTask(SupervisedTask):
    """DPO or IPO on ranked answers."""

    name = "dpo"
    best = "accuracy"
    column = "answers"

    def __init__(self, config: DPOConfig) -> None:
        self._config = config
        self._cache: training.ReferenceCache | None = None

    @functools.cached_property
    def objective(self) -> algorithms.PreferenceObjective:
        return algorithms.PreferenceObjective(
            beta=self._config.beta,
            label_smoothing=self._config.label_smoothing,
            kind=self._config.loss,
            length_normalised=self._config.length_normalised,
        )

    def encode(self, form: ChatForm, sample: Sample) -> Group | None:
        require_answers(sample)
        return ranked_answers(form, sample, max_length=self._config.max_length)

    def prepare(
        self, batch: algorithms.Batch, groups: Sequence[Group], supervised: training.SupervisedContext
    ) -> algorithms.Batch:
        return algorithms.with_preference_pairs(batch, groups).with_columns(
            ref_logprobs=self._reference(batch, groups, supervised)
        )

    def _reference(
        self, batch: algorithms.Batch, groups: Sequence[Group], supervised: training.SupervisedContext
    ) -> torch.Tensor:
        if self._cache is None:
            return supervised.model.outputs(batch, at_start=True)
        return self._cache.logprobs(groups)

    def begin(self, supervised: training.SupervisedContext, *, steps: int) -> None:
        """Compute the reference's log-probabilities, and see that the first loss is that of the reference."""
        if self._config.reference == "cached":
            self._cache = self._fill_cache(supervised, steps)
        groups = supervised.examples.of_the_run(self._config.batch_size)
        batch = self.prepare(algorithms.Batch.from_groups(groups), groups, supervised)
        loss = supervised.model.evaluate_loss(batch, self.objective)["dpo/loss"]
        expected = self.objective.loss_of_reference
        if not abs(loss - expected) <= TOLERANCE[supervised.context.precision] * max(1.0, expected):
            raise NumericalError(
                f"the loss before the first step is {loss:.6f}, but that of a policy that is its own reference is "
                f"{expected:.6f}: the reference is another model (look at reference_cache and model.path), its tokens "
                "differ (tokenizer, chat template), or the model is not deterministic (dropout, bf16 overflow)"
            )

    def _fill_cache(self, supervised: training.SupervisedContext, steps: int) -> training.ReferenceCache:
        path = Path(self._config.reference_cache or supervised.run.directory / "reference_logprobs.safetensors")
        cache = training.ReferenceCache(
            path,
            model=weights_fingerprint(supervised.context.model_path),
            tokenizer=tokenizer_fingerprint(supervised.form.tokenizer),
        )
        groups = [*supervised.examples.of_the_run(steps * self._config.batch_size), *supervised.heldout_groups]
        groups += [group for part in supervised.others.values() for group in part]
        with supervised.run.timed("reference"):
            computed = cache.fill(groups, supervised.model.outputs)
        log.info("reference log-probabilities: %d computed, %d found in %s", computed, len(groups) - computed, path)
        return cache

    def evaluate(self, supervised: training.SupervisedContext) -> dict[str, float]:
        batch = self.prepare(supervised.heldout, supervised.heldout_groups, supervised)
        metrics = supervised.model.evaluate_loss(batch, self.objective)
        return {name.rpartition("/")[2]: value for name, value in metrics.items() if name != "dpo/loss"}


def train_dpo(config: DPOConfig) -> training.TrainingResult:
    """Train; return what the run left."""
    return training.train_supervised(config, DPOTask(config))


def rehearse(config: DPOConfig) -> list[str]:
    """Describe what a dry run found."""
    return prepare_task(config, DPOTask(config)).lines()


if __name__ == "__main__":
    run_program(train_dpo, DPOConfig, "jobs/train_dpo.py", rehearse=rehearse)
