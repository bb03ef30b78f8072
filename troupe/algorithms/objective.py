"""What is minimised: the losses of `algorithms`, put together as the settings say.

Objectives are small picklable callables, so that the driver hands them to the workers. Each is called with what the
model's forward returns and the columns of the same tokens, which are those of whole groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from troupe.algorithms import losses, preference_losses as preferences
from troupe.algorithms.gae import value_loss
from troupe.algorithms.packing import branch_scores, last_tokens
from troupe.config.algorithm import AlgorithmConfig

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]
Columns = Mapping[str, torch.Tensor]


class Objective(Protocol):
    """A loss over the tokens of whole groups."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the model's forward is asked for."""

    def __call__(self, *outputs_and_columns: Any) -> Loss:
        """Return the model's outputs [n] one by one, then the columns [n] -> (loss, metrics)."""


@dataclass(frozen=True)
class PolicyObjective:
    """Clipped surrogate, KL in the loss and entropy bonus, as the settings say."""

    settings: AlgorithmConfig
    temperature: float = 1.0

    @property
    def options(self) -> Mapping[str, Any]:
        return {"temperature": self.temperature, "entropy_grad": self.settings.entropy_coef > 0}

    def __call__(self, logprobs: torch.Tensor, entropy: torch.Tensor, columns: Columns) -> Loss:
        settings = self.settings
        weights, metric_weights = columns["loss_weights"], columns["metric_weights"]
        loss, metrics = losses.policy_loss(
            logprobs,
            columns["old_logprobs"],
            columns["advantages"],
            weights,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            importance_weights=columns.get("importance_weights"),
            ratio=settings.ratio,
            branch_ids=columns["branch_ids"],
            metric_weights=metric_weights,
        )
        bonus, entropy_metrics = losses.entropy_loss(entropy, weights, metric_weights=metric_weights)
        metrics |= entropy_metrics
        if settings.entropy_coef > 0:
            loss = loss + settings.entropy_coef * bonus
        if "ref_logprobs" in columns and settings.kl.placement == "loss":
            divergence, kl_metrics = losses.kl_loss(
                logprobs, columns["ref_logprobs"], weights, settings.kl.kind, metric_weights=metric_weights
            )
            loss = loss + settings.kl.coef * divergence
            metrics |= kl_metrics
        return loss, metrics


@dataclass(frozen=True)
class SupervisedObjective:
    """Cross-entropy."""

    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, logprobs: torch.Tensor, entropy: torch.Tensor, columns: Columns) -> Loss:
        return losses.sft_loss(logprobs, columns["loss_weights"], metric_weights=columns["metric_weights"])


@dataclass(frozen=True)
class PreferenceObjective:
    """DPO or IPO on groups of ranked branches; needs `ref_logprobs` and the columns of `with_preference_pairs`."""

    beta: float
    label_smoothing: float = 0.0
    kind: preferences.PreferenceLoss = "sigmoid"
    length_normalised: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, logprobs: torch.Tensor, entropy: torch.Tensor, columns: Columns) -> Loss:
        ends = last_tokens(columns["branch_ids"])
        local_ids = torch.unique_consecutive(columns["branch_ids"], return_inverse=True)[1]  # [n], 0 .. b - 1
        log_ratios = preferences.branch_sums(
            logprobs - columns["ref_logprobs"],
            columns["loss_mask"],
            local_ids,
            len(ends),
            normalise=self.length_normalised,
        )
        pairs, weights = _pairs(columns, ends)
        return preferences.dpo_loss(
            log_ratios, pairs, weights, beta=self.beta, label_smoothing=self.label_smoothing, kind=self.kind
        )

    @property
    def loss_of_reference(self) -> float:
        """The loss of a policy that is its reference: ln 2, or IPO's (1 / (2 beta))^2."""
        return math.log(2) if self.kind == "sigmoid" else (1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class RankingObjective:
    """Bradley-Terry on groups of branches, scored at their last tokens; needs `with_preference_pairs`' columns."""

    options: Mapping[str, Any] = field(default_factory=lambda: {"reads": "after"})

    def __call__(self, values: torch.Tensor, columns: Columns) -> Loss:
        ends = last_tokens(columns["branch_ids"])
        pairs, weights = _pairs(columns, ends)
        margins = columns["margins"][ends][pairs.winners] if "margins" in columns else None
        scores = branch_scores(values, columns["branch_ids"])
        return preferences.bradley_terry_loss(scores, pairs, weights, margins)


@dataclass(frozen=True)
class ValueObjective:
    """A critic's squared error; needs `returns` and `old_values`."""

    clip: float | None
    options: Mapping[str, Any] = field(default_factory=lambda: {"reads": "before"})

    def __call__(self, values: torch.Tensor, columns: Columns) -> Loss:
        return value_loss(
            values,
            columns["old_values"],
            columns["returns"],
            columns["loss_weights"],
            clip=self.clip,
            metric_weights=columns["metric_weights"],
        )


def _pairs(columns: Columns, ends: torch.Tensor) -> tuple[preferences.Pairs, torch.Tensor]:
    """Pairs among the branches that end at these tokens, and what each counts in the step."""
    pairs = preferences.ranked_pairs(columns["group_ids"][ends], columns["ranks"][ends])
    return pairs, columns["group_weights"][ends][pairs.winners] * pairs.shares
