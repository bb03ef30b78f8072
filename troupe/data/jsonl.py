"""A file of rows as a data set; `troupe.data.mapping` says what a row becomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from troupe.config.own_data import JsonlConfig
from troupe.data.dataset import DataSet
from troupe.data.lines import read_rows
from troupe.data.mapping import Named, load_mapped


def load_jsonl(config: JsonlConfig) -> DataSet:
    heldout = None if config.heldout_path is None else _rows(Path(config.heldout_path))
    return load_mapped(config, _rows(Path(config.path)), heldout, config.path)


def _rows(path: Path) -> Iterator[Named]:
    return ((f"{path.name}:{number}", where, row) for number, where, row in read_rows(path))
