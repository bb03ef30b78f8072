"""Means over samples with their intervals, of what was measured of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas

from troupe.statistics import Estimate, estimate_mean

Estimates = Mapping[str, Estimate]
"""Metric -> mean with interval."""


def means_by_sample(ids: Sequence[str], values: Sequence[Mapping[str, float | None]]) -> pandas.DataFrame:
    """Return a row per sample and a column per metric; several answers to a sample count as their mean."""
    columns = list(dict.fromkeys(name for each in values for name in each))
    table = pandas.DataFrame(list(values), columns=columns, dtype=float)
    return table.groupby(pandas.Index(ids, dtype=object), sort=False).mean()  # object: an id may hold half a character


def estimate_columns(means: pandas.DataFrame, *, seed: int) -> dict[str, Estimate]:
    """Return the mean of every column over the samples that have a value, without the columns where none has."""
    known = {str(name): column.dropna().to_numpy() for name, column in means.items()}
    return {name: estimate_mean(column, seed=seed) for name, column in known.items() if len(column)}
