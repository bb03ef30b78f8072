"""DPO: make the better of two answers likelier than the worse one, beside what the starting model thinks of them.

    python jobs/train_dpo.py [recipe.yaml ...] [section.field=value ...]

Chosen and rejected are branches of one prompt, which is computed once. The reference's log-probabilities are computed
before the first step, when the policy still is its own reference.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.algorithms.advantage_stage import with_preference_pairs
from troupe.algorithms.objective import PreferenceObjective
from troupe.algorithms.packing import Batch
from troupe.config.program import run_program
from troupe.config.supervised import DPOConfig
from troupe.errors import NumericalError
from troupe.records import Group, Sample
from troupe.runs.fingerprint import tokenizer_fingerprint, weights_fingerprint
from troupe.training.examples import ranked_answers, require_answers
from troupe.training.reference_cache import ReferenceCache
from troupe.training.supervised import SupervisedContext, SupervisedTask, prepare_task, train_supervised

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""How far the first loss may be from that of a policy which is its own reference; bf16 rounds otherwise in other rows."""


class DPOTask(SupervisedTask):
    """DPO or IPO on ranked answers."""

    name = "dpo"
    best = "accuracy"

    def __init__(self, config: DPOConfig) -> None:
        self._config = config
        self._cache: ReferenceCache | None = None
        self.objective: PreferenceObjective = PreferenceObjective(
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            kind=config.loss,
            length_normalised=config.length_normalised,
        )

    def encode(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> Group | None:
        require_answers(sample)
        return ranked_answers(tokenizer, sample, max_length=self._config.max_length)

    def prepare(self, batch: Batch, groups: Sequence[Group], training: SupervisedContext) -> Batch:
        return with_preference_pairs(batch, groups).with_columns(ref_logprobs=self._reference(batch, groups, training))

    def _reference(self, batch: Batch, groups: Sequence[Group], training: SupervisedContext) -> torch.Tensor:
        if self._cache is None:
            return training.model.outputs(batch, at_start=True)
        return self._cache.logprobs(groups)

    def begin(self, training: SupervisedContext, *, steps: int) -> None:
        """Compute the reference's log-probabilities, and see that the first loss is that of the reference."""
        if self._config.reference == "cached":
            self._cache = self._fill_cache(training, steps)
        groups = training.examples.of_the_run(self._config.batch_size)
        batch = self.prepare(Batch.from_groups(groups), groups, training)
        loss = training.model.evaluate_loss(batch, self.objective)["dpo/loss"]
        expected = self.objective.loss_of_reference
        if not abs(loss - expected) <= TOLERANCE[training.context.precision] * max(1.0, expected):
            raise NumericalError(
                f"the loss before the first step is {loss:.6f}, but that of a policy that is its own reference is {expected:.6f}: the "
                "reference is another model (look at reference_cache and model.path), its tokens differ (tokenizer, chat template), "
                "or the model is not deterministic (dropout, bf16 overflow)"
            )

    def _fill_cache(self, training: SupervisedContext, steps: int) -> ReferenceCache:
        path = Path(self._config.reference_cache or training.run.directory / "reference_logprobs.safetensors")
        cache = ReferenceCache(
            path,
            model=weights_fingerprint(training.context.model_path),
            tokenizer=tokenizer_fingerprint(training.tokenizer),
        )
        groups = [*training.examples.of_the_run(steps * self._config.batch_size), *training.heldout_groups]
        with training.run.timed("reference"):
            computed = cache.fill(groups, training.model.outputs)
        log.info("reference log-probabilities: %d computed, %d found in %s", computed, len(groups) - computed, path)
        return cache

    def evaluate(self, training: SupervisedContext) -> dict[str, float]:
        batch = self.prepare(training.heldout, training.heldout_groups, training)
        metrics = training.model.evaluate_loss(batch, self.objective)
        return {name.rpartition("/")[2]: value for name, value in metrics.items() if name != "dpo/loss"}


def train_dpo(config: DPOConfig) -> None:
    train_supervised(config, DPOTask(config))


def rehearse(config: DPOConfig) -> list[str]:
    """What a dry run shows."""
    return prepare_task(config, DPOTask(config)).lines()


if __name__ == "__main__":
    run_program(train_dpo, DPOConfig, "jobs/train_dpo.py", rehearse=rehearse)
