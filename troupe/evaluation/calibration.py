"""How far a reward model's confidence can be believed: among pairs it is 80 % sure of, is it right in 80 %?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Pairs by confidence sigmoid(|score difference|), from one half to 1 in equal steps."""

    bins: Sequence[dict[str, float]]
    """`low`, `high`, `count`, `confidence` (its mean) and `accuracy` of every bin that has pairs."""
    error: float
    """Expected calibration error: |accuracy - confidence| averaged over pairs (Guo et al. 1706.04599, Eq. 3)."""

    @staticmethod
    def of(margins: Sequence[float]) -> Calibration:
        """Compute it from each pair's score of the better answer minus the worse one's; equal ones are half right."""
        pairs = [
            (1 / (1 + math.exp(-min(abs(margin), 700))), (math.copysign(1, margin) + 1) / 2 if margin else 0.5)
            for margin in margins
        ]
        bins = []
        for index in range(BINS):
            low, high = 0.5 + index * 0.5 / BINS, 0.5 + (index + 1) * 0.5 / BINS
            inside = [pair for pair in pairs if low <= pair[0] < high or (index == BINS - 1 and pair[0] == 1)]
            if inside:
                confidence = sum(sure for sure, _ in inside) / len(inside)
                accuracy = sum(right for _, right in inside) / len(inside)
                bins.append(
                    {"low": low, "high": high, "count": len(inside), "confidence": confidence, "accuracy": accuracy}
                )
        error = sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / max(1, len(pairs))
        return Calibration(bins=bins, error=error)
