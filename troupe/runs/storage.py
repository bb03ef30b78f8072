"""A model by its address in an object store, fetched once: `s3://...` stands wherever `runs/x` does."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from troupe.errors import StorageError
from troupe.files import read_json, to_json, write_atomically
from troupe.names import step_name, step_of
from troupe.runs.bucket import Bucket, in_threads
from troupe.runs.checkpoint import INDEX, ONLY_TO_RESUME, CheckpointStore, Wanted, damage
from troupe.runs.stored_run import CHECKPOINTS, StoredRun, without

CACHE = Path(".cache/s3")
FETCHED = ".fetched.json"


def fetch(url: str, into: Path = CACHE, *, checkpoint: Wanted = "best", bucket: Bucket | None = None) -> Path:
    """Fetch the model at `s3://...` to a directory below `into`: a run (its best checkpoint, or the wanted one), one of
    a run's checkpoints, or any directory of model files. What is there already and unchanged is not fetched again.

    Of a checkpoint the trainer's state, several times the weights, is left out. StorageError where there is no model.
    """
    bucket = bucket or Bucket(url)
    directory = into / bucket.name / bucket.prefix
    parent, _, last = bucket.address.rpartition(f"/{CHECKPOINTS}/")
    if parent:
        wanted: Any = last if last in ("best", "latest") else step_of(last)
        if wanted is None:
            raise StorageError(f"{url} is no checkpoint; write {parent}, or {parent}/{CHECKPOINTS}/{step_name(10)}")
        checkpoint, bucket, directory = wanted, bucket.above(2), directory.parents[1]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f".{directory.name}.lock")):  # another process may fetch the same
        if parent or bucket.sizes(f"{CHECKPOINTS}/"):
            return _fetch_step(StoredRun(bucket), directory, checkpoint)
        return _fetch_directory(bucket, directory)


def _fetch_step(run: StoredRun, directory: Path, checkpoint: Wanted) -> Path:
    manifests = run.manifests()
    step = run.choose(checkpoint, sorted(manifests))
    store = CheckpointStore(directory / CHECKPOINTS)
    files = store.manifest(step)["files"] if store.complete(step) else None
    if files != without(manifests[step]["files"], ONLY_TO_RESUME) or damage(store.path(step)) is not None:
        run.pull_step(step, manifests[step], directory, leave_out=ONLY_TO_RESUME)
    for name in ("config.yaml", "environment.json", f"{CHECKPOINTS}/{INDEX}"):  # where the model is from
        content = run.bucket.read(name)
        if content is not None:
            write_atomically(directory / name, content.decode())
    return store.path(step)


def _fetch_directory(bucket: Bucket, directory: Path) -> Path:
    listing = bucket.listing()
    if "config.json" not in listing:
        raise StorageError(
            f"{bucket.address} holds neither a run with checkpoints nor a model (there is no config.json); correct "
            f"the address"
        )
    as_written = {name: list(facts) for name, facts in listing.items()}
    if read_json(directory / FETCHED) != as_written:
        shutil.rmtree(directory, ignore_errors=True)
        in_threads([functools.partial(bucket.get, name, directory / name) for name in listing])
        write_atomically(directory / FETCHED, to_json(as_written))
    return directory
