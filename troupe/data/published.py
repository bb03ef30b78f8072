"""The rows of a published data set: of the Hugging Face hub, or of JSONL files with the same fields.

The data sets say what a row becomes and which splits they use; a sample is named by data set, split (or file) and the
row's number, whatever filters leave out.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from troupe.config.published_data import PublishedConfig
from troupe.data.dataset import DataSet, Dropped, hold_out
from troupe.data.hub import hub_split
from troupe.data.lines import Row, read_rows
from troupe.errors import DataError
from troupe.records import Sample

log = logging.getLogger(__name__)

Located = Iterable[tuple[str, Row]]
"""Rows, each with the place that an error names, such as `train.jsonl line 3`."""
Named = Iterable[tuple[str, str, Row]]
"""Rows, each with the id of its sample and its place."""
Make = Callable[[str, str, Row], Sample | Dropped]
"""What a row becomes: (sample id, place, row) to a sample, or to the reason why a filter leaves it out."""


def load_published(
    config: PublishedConfig, make: Make, *, train: str = "train", heldout: str = "test", subset: str | None = None
) -> DataSet:
    """Return the data set of a config, its two sides made from the splits of these names.

    `subset` is the hub's configuration of the data set, where it has several. Raises DataError for what is missing.
    """
    rows = _rows(config, train, heldout, subset)
    dropped: Counter[str] = Counter()
    limits = (config.num_train, config.num_heldout)
    sides = [_samples(named, make, limit, dropped) for named, limit in zip(rows, limits, strict=True)]
    one_file = _is_local(config.path) and not Path(config.path).is_dir()
    return DataSet(name=config.type, train=sides[0], heldout=sides[1], dropped=dropped, from_one_file=one_file)


def _samples(rows: Named, make: Make, limit: int | None, dropped: Counter[str]) -> list[Sample]:
    samples: list[Sample] = []
    for sample_id, where, row in rows:
        if len(samples) == limit:  # before the next row is made, so that `dropped` counts no row beyond the last sample
            break
        made = make(sample_id, where, row)
        if isinstance(made, Dropped):
            dropped[made.reason] += 1
        else:
            samples.append(made)
    return samples


def _rows(config: PublishedConfig, train: str, heldout: str, subset: str | None) -> tuple[Named, Named]:
    path = Path(config.path)
    if _is_local(config.path) and not path.is_dir():
        return _split(list(_named(_file(path), f"{config.type}/{path.stem}")), config)
    if path.is_dir():
        sides: tuple[Located, Located] = _file(path / f"{train}.jsonl"), _file(path / f"{heldout}.jsonl")
    else:
        sides = _hub(config.path, subset, train, heldout)
    return _named(sides[0], f"{config.type}/{train}"), _named(sides[1], f"{config.type}/{heldout}")


def _named(rows: Located, name: str) -> Named:
    """Return the rows with ids that count them from 0, whatever filters leave out."""
    return ((f"{name}/{number}", where, row) for number, (where, row) in enumerate(rows))


def one_split(name: str, split: str) -> Located:
    """Return the rows of one split: of `<split>.jsonl` in a directory, of a JSONL file, or of the hub."""
    path = Path(name)
    if path.is_dir():
        return _file(path / f"{split}.jsonl")
    return (
        _file(path)
        if _is_local(name)
        else _located(name, split, hub_split(name, None, split, instead=f"{split}.jsonl"))
    )


def _is_local(name: str) -> bool:
    path = Path(name)
    return (
        path.is_file()
        or path.suffix in (".jsonl", ".json", ".gz", ".parquet", ".csv")
        or path.is_absolute()
        or name.startswith(".")
    )


def _file(path: Path) -> list[tuple[str, Row]]:
    return [(where, row) for _, where, row in read_rows(path)]


def _split(rows: Sequence[tuple[str, str, Row]], config: PublishedConfig) -> tuple[Named, Named]:
    """Split one file into both sides; where it has less than `num_heldout` rows, a tenth is held out."""
    wanted = config.num_heldout if config.num_heldout is not None and config.num_heldout < len(rows) else None
    train, heldout = hold_out(rows, wanted, config.type, lambda named: json.dumps(named[2], sort_keys=True))
    if not train:
        raise DataError(
            f"{config.path} has {len(rows)} rows, too few different ones to hold out one and train on the others; "
            f"give more rows"
        )
    if config.num_heldout is not None and wanted is None:
        log.info("%s: held out %d of %d rows, fewer than data.num_heldout", config.path, len(heldout), len(rows))
    return train, heldout


def _hub(name: str, subset: str | None, train: str, heldout: str) -> tuple[Located, Located]:
    files = f"{train}.jsonl and {heldout}.jsonl"
    sides = [hub_split(name, subset, split, instead=files) for split in (train, heldout)]
    return _located(name, train, sides[0]), _located(name, heldout, sides[1])


def _located(name: str, split: str, rows: Iterable[Row]) -> Located:
    """Yield row by row, so that half a million conversations need not lie in memory twice."""
    for number, row in enumerate(rows):
        yield f"{name} {split} row {number}", row
