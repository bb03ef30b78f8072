"""Several data sets as one: each sample knows its source, and training draws from the sources by weight.

The order is `troupe.data.stream`'s; rewards and metrics of one source go by `sample.fields["source"]`.
"""

from __future__ import annotations

import itertools

from troupe.config.data import MixtureConfig
from troupe.data import load_data
from troupe.data.dataset import DataSet, named
from troupe.errors import DataError


def load_mixture(config: MixtureConfig) -> DataSet:
    parts: dict[str, DataSet] = {}
    for name, source in config.sources.items():
        try:
            parts[name] = load_data(source)
        except DataError as error:
            raise DataError(f"source {name} of the mixture: {error}") from None
        if parts[name].curriculum is not None:
            raise DataError(f"source {name} of the mixture has a curriculum, which only data of one type can have")
    train = [sample for name, data in parts.items() for sample in named(name, data.train)]
    # In turns, so that the first n held-out samples hold some of every source.
    turns = itertools.zip_longest(*(named(name, data.heldout) for name, data in parts.items()))
    return DataSet(
        name="mixture",
        train=train,
        heldout=[sample for turn in turns for sample in turn if sample is not None],
        dropped={f"{name}/{reason}": count for name, data in parts.items() for reason, count in data.dropped.items()},
        from_one_file=all(data.from_one_file for data in parts.values()),
        weights=config.weights or {name: float(len(data.train)) for name, data in parts.items()},
    )
