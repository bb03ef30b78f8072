"""What a run holds out stays held out: `data.json` in its directory remembers it, whatever becomes of the files.

It is written when a run begins. A run that goes on compares: rows that are new join training, the held-out rows are
those of the beginning, and a model that was made from the data then is not made anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from troupe.data import DataSet
from troupe.errors import DataError
from troupe.files import read_json, to_json, write_atomically
from troupe.records import Sample
from troupe.runs.run import Run

log = logging.getLogger(__name__)

FILE = "data.json"


def data_of_run(run: Run, data: DataSet) -> DataSet:
    """Return the data of a run as it was split when the run began, and with all rows that came since in training."""
    kept = read_json(run.directory / FILE) if run.checkpoints.latest() is not None else None
    keys = [data.key(sample) for sample in data.heldout]
    digest = _digest(data)
    if kept is None:
        if run.checkpoints.latest() is not None and data.from_one_file:
            log.warning(
                "%s was begun before runs remembered their held-out rows; some may have been trained on", run.directory
            )
        _write(run, {"digest": digest, "train": len(data.train), "heldout": keys})
        return data
    if (kept["digest"], kept["heldout"]) == (digest, keys):
        return data
    again = _split_as_before(data, kept["heldout"])
    gone = len(kept["heldout"]) - len(again.heldout)
    if not again.heldout:
        raise DataError(
            f"none of the {gone} rows that {run.directory} holds out is in the data any more, so its curve would mix "
            f"two sets; "
            "put the rows back, or begin anew with run.resume=never"
        )
    log.warning(
        "the data changed since the run began: %d training rows then, %d now; held out are the same %d rows%s",
        kept["train"],
        len(again.train),
        len(again.heldout),
        f", {gone} are gone" if gone else "",
    )
    run.event("data_changed", train_before=kept["train"], train=len(again.train), heldout_gone=gone)
    return again


def model_of_run(run: Run, data: DataSet, make: Callable[[], str]) -> str:
    """Return the directory of the model that the run starts from, which `make` makes of the data when the run
    begins.
    """
    kept = read_json(run.directory / FILE)
    if run.checkpoints.latest() is None or "model" not in kept:
        kept["model"] = make()
        _write(run, kept)
    elif not Path(kept["model"], "config.json").is_file():
        if _digest(data) != kept["digest"]:
            raise DataError(
                f"the model that {run.directory} began with ({kept['model']}) is gone, and the data it was made of "
                f"changed since; "
                "put the data back, or begin anew with run.resume=never"
            )
        return make()
    return str(kept["model"])


def _write(run: Run, kept: dict[str, Any]) -> None:
    write_atomically(run.directory / FILE, to_json(kept) + "\n")


def _digest(data: DataSet) -> str:
    """Return a hash of all rows of both sides, whatever their order."""
    keys = sorted(data.key(sample) for sample in (*data.train, *data.heldout))
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _split_as_before(data: DataSet, heldout: list[str]) -> DataSet:
    """Return the data with the rows of these keys held out and no others.

    Of one file all other rows are trained on, save copies of held-out ones; rows of a held-out file never are.
    """
    wanted = Counter(heldout)
    held: dict[str, list[Sample]] = {key: [] for key in wanted}
    train: list[Sample] = []
    for was_held, samples in ((True, data.heldout), (False, data.train)):
        for sample in samples:
            key = data.key(sample)
            if len(held.get(key, ())) < wanted[key]:
                held[key].append(sample)
            elif (key not in wanted or not data.from_one_file) and (data.from_one_file or not was_held):
                train.append(sample)
    return dataclasses.replace(data, train=train, heldout=[sample for same in held.values() for sample in same])
