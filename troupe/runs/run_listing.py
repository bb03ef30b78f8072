"""What runs there are in a directory or under an address, with their state, checkpoints and sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from troupe.disk import human_bytes
from troupe.files import read_json
from troupe.names import step_name
from troupe.runs.bucket import Bucket
from troupe.runs.checkpoint import CheckpointStore, kept_steps
from troupe.runs.stored_run import CHECKPOINTS, StoredRun

ROW = ("run", "state", "step", "checkpoints", "size", "updated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A run in a list."""

    place: str
    """Directory or address."""
    status: Mapping[str, Any]
    """Its status.json; empty where there is none."""
    checkpoints: Mapping[int, int]
    """Step -> bytes, of complete checkpoints."""
    best: int | None
    size: int
    """Bytes of everything."""

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def shown_checkpoints(self) -> str:
        return ", ".join(f"{step} (best)" if step == self.best else str(step) for step in sorted(self.checkpoints))

    def row(self) -> tuple[str, ...]:
        """Return the cells of its line, under ROW."""
        step = f"{self.status['step']}/{self.status['steps']}" if "steps" in self.status else "-"
        updated = str(self.status.get("updated", "-"))[:16].replace("T", " ")
        return self.place, self.state, step, self.shown_checkpoints or "-", human_bytes(self.size), updated

    def kept(self, keep: int) -> set[int]:
        """Return the newest `keep` steps and the best."""
        return kept_steps(self.checkpoints, self.best, keep)


def local_runs(directory: Path) -> list[Listed]:
    """List the run that `directory` is, or those in it."""
    paths = [directory] if (directory / "config.yaml").is_file() else sorted(directory.glob("[!.]*"))
    return [_local(path) for path in paths if (path / "config.yaml").is_file()]


def _local(path: Path) -> Listed:
    store = CheckpointStore(path / CHECKPOINTS)
    return Listed(
        place=str(path),
        status=read_json(path / "status.json") or {},
        checkpoints={step: _bytes_below(store.path(step)) for step in store.steps()},
        best=store.best(),
        size=_bytes_below(path),
    )


def _bytes_below(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def stored_runs(bucket: Bucket) -> list[Listed]:
    """List the run under the bucket's address, or those one level below."""
    sizes = bucket.sizes()
    if _is_run(sizes):
        return [_stored(bucket, sizes)]
    below: dict[str, dict[str, int]] = {}
    for key, size in sizes.items():
        name, slash, rest = key.partition("/")
        if slash:
            below.setdefault(name, {})[rest] = size
    return [_stored(bucket.at(name), found) for name, found in sorted(below.items()) if _is_run(found)]


def _is_run(sizes: Mapping[str, int]) -> bool:
    return "config.yaml" in sizes or any(key.startswith(f"{CHECKPOINTS}/step-") for key in sizes)


def _stored(bucket: Bucket, sizes: Mapping[str, int]) -> Listed:
    run = StoredRun(bucket)
    starts = {step: f"{CHECKPOINTS}/{step_name(step)}/" for step in run.manifests(sizes)}
    return Listed(
        place=bucket.address,
        status=json.loads(bucket.read("status.json") or b"{}"),
        checkpoints={
            step: sum(size for key, size in sizes.items() if key.startswith(start)) for step, start in starts.items()
        },
        best=run.best(starts),
        size=sum(sizes.values()),
    )
