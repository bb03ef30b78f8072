"""Intervals for means of few samples."""

from __future__ import annotations

import random
from collections.abc import Sequence


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979): (low, high).

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(resamples))
    tail = (1 - confidence) / 2
    return means[round(tail * (resamples - 1))], means[round((1 - tail) * (resamples - 1))]
