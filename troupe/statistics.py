"""Means of few samples and how sure they are: percentile bootstrap intervals (Efron 1979).

A statistic of several columns (a difference, a ratio) resamples whole rows, so that what belongs to one sample stays
together; that is what makes an interval of a difference paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

CONFIDENCE = 0.95
RESAMPLES = 1000
CHUNK = 2**22
"""Most drawn indices that are held at once."""

Array = numpy.ndarray[Any, numpy.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A statistic and its 95 % interval."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Return whether `value` is outside of the interval."""
        return not self.low <= value <= self.high


def estimate_mean(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Return the mean of `values`."""
    return _estimate([values], lambda means: means[0], seed=seed)


def estimate_difference(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> Estimate:
    """mean(values) - mean(others), paired: both are of the same samples in the same order."""
    return _estimate([values, others], lambda means: means[0] - means[1], seed=seed)


def estimate_ratio(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> Estimate:
    """mean(values) / mean(others), paired; both non-negative. Infinite where the resampled others are all 0."""

    def ratio(means: Array) -> Array:
        with numpy.errstate(divide="ignore", invalid="ignore"):
            return numpy.where(means[1] > 0, means[0] / means[1], numpy.inf)

    return _estimate([values, others], ratio, seed=seed)


def _estimate(columns: Sequence[Sequence[float]], statistic: Callable[[Array], Array], *, seed: int) -> Estimate:
    """Return a statistic of the columns' means: of the samples as they are, and of every resampling."""
    resampled = _resampled_means(columns, seed=seed)
    observed = statistic(numpy.asarray(columns, dtype=float).mean(axis=1))
    low, high = interval(statistic(resampled))
    return Estimate(mean=float(observed), low=low, high=high)


def _resampled_means(columns: Sequence[Sequence[float]], *, seed: int) -> Array:
    """Return [columns, RESAMPLES]: means of rows drawn with replacement, the same rows for every column."""
    table = numpy.asarray(columns, dtype=float)
    count = table.shape[1]
    if not count:
        raise ValueError("an interval needs at least one value")
    rng = numpy.random.default_rng(seed)
    each = max(1, CHUNK // count)
    drawn = (rng.integers(0, count, (min(each, RESAMPLES - start), count)) for start in range(0, RESAMPLES, each))
    return numpy.concatenate([table[:, rows].mean(axis=2) for rows in drawn], axis=1)


def interval(values: Array) -> tuple[float, float]:
    """Return the percentiles of the resampled `values` that enclose the middle CONFIDENCE of them: (low, high)."""
    tail = (1 - CONFIDENCE) / 2
    ordered = numpy.sort(values)
    last = len(ordered) - 1
    return float(ordered[round(tail * last)]), float(ordered[round((1 - tail) * last)])
