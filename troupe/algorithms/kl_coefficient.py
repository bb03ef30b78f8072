"""The KL coefficient of a run: a number, or one that a controller moves after every step."""

from __future__ import annotations

import torch

from troupe.algorithms import kl
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import AlgorithmConfig, KLConfig


class KLCoefficient:
    """Starts at `coef`; with `adaptive` it follows the KL of the rollouts. Its `value` belongs into the checkpoint."""

    def __init__(self, config: KLConfig) -> None:
        self._config = config
        self.value = config.coef

    def within(self, settings: AlgorithmConfig) -> AlgorithmConfig:
        """Return the settings with the coefficient as it is now."""
        return settings.model_copy(update={"kl": settings.kl.model_copy(update={"coef": self.value})})

    def follow(self, batch: Batch) -> dict[str, float]:
        """Move the coefficient after a step on `batch`, which has `old_logprobs` and `ref_logprobs`."""
        adaptive = self._config.adaptive
        if adaptive is None:
            return {}
        # Each form has its own measure: trlx's controller is driven by what trlx reports as KL.
        estimator = kl.k1 if adaptive.form == "ziegler" else kl.trlx_kl
        tokens = torch.where(batch["loss_mask"], estimator(batch["old_logprobs"], batch["ref_logprobs"]), 0.0)
        per_answer = float(tokens.sum()) / batch.num_branches
        used = self.value
        self.value = kl.adapted_coef(
            used,
            per_answer,
            target=adaptive.target,
            form=adaptive.form,
            rate=adaptive.rate,
            horizon=adaptive.horizon,
            num_sequences=batch.num_branches,
        )
        return {"policy/kl_coef": used, "policy/kl_per_answer": per_answer}
