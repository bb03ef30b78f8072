"""Data sets that the `datasets` library loads: of the Hugging Face hub, or local parquet, CSV, JSON and Arrow.

Only here is that library used; `troupe.data.published` comes through here as well. What a row becomes is
`troupe.data.mapping`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from troupe.config.own_data import HubConfig
from troupe.data.dataset import DataSet
from troupe.data.mapping import Named, load_mapped
from troupe.data.row_files import table_row
from troupe.errors import DataError

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def load_hub(config: HubConfig) -> DataSet:
    heldout = None if config.heldout_split is None else _rows(config, config.heldout_split)
    return load_mapped(config, _rows(config, config.split), heldout, f"{config.path} {config.split}")


def _rows(config: HubConfig, split: str) -> Iterator[Named]:
    for number, row in enumerate(hub_split(config.path, config.subset, split)):
        where = f"{config.path} {split} row {number}"
        yield f"hub/{split}/{number}", where, table_row(row, where)


def hub_split(name: str, subset: str | None, split: str, *, instead: str = "") -> Any:
    """Load a split; DataError names the splits or subsets that there are, or what to do without the hub.

    `instead` are files that would do as well.
    """
    import datasets  # seconds of import that local files do not need

    path = Path(name)
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return _saved(datasets.load_from_disk(name), split)
        if path.is_file():
            builder = BUILDERS.get(Path(path.name.removesuffix(".gz")).suffix, "json")
            return datasets.load_dataset(builder, data_files={"train": name}, split=split)
        return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # failures have no common base: network, missing repository, missing split
        reason = " ".join(str(error).split())
        if path.exists() or isinstance(error, ValueError | KeyError):
            raise DataError(
                f"data set {name!r}, split {split!r}: {reason[:300]}; mend data.split or data.subset"
            ) from None
        files = instead or "its parquet or JSON files"
        raise DataError(
            f"data set {name!r} cannot be loaded from the Hugging Face hub ({type(error).__name__}: {reason[:300]}); "
            f"check the name and the network, or put {files} into a directory and set data.path to it"
        ) from None


def _saved(saved: Any, split: str) -> Any:
    """Return a split of what `save_to_disk` wrote, which of one split has no names."""
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise ValueError(f"Unknown split {split!r}. Should be one of {list(saved)}.")
    return saved[split]
