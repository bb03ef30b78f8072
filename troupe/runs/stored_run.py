"""Runs in an object store: the files of a run directory under `<url>/<name>`, and checkpoints that can be trusted there
too.

A checkpoint's manifest is stored after everything it names, and removed before anything it names: whatever is cut off
in between, a reader finds a whole checkpoint or none. What was fetched is compared with the manifest byte for byte.
"""

from __future__ import annotations

import functools
import json
import mmap
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from troupe.config.run import StorageConfig
from troupe.errors import StorageError
from troupe.files import to_json, write_atomically
from troupe.names import step_name, step_of
from troupe.runs.bucket import Bucket, in_threads
from troupe.runs.checkpoint import (
    INDEX,
    MANIFEST,
    CheckpointStore,
    Wanted,
    best_of,
    checked_manifest,
    kept_steps,
    read_manifest,
)

CHECKPOINTS = "checkpoints"
STAYS_HERE = (CHECKPOINTS, "wandb")
"""Of a run directory: checkpoints go by step, and W&B's own copy goes to W&B."""
PAUSES_S = (1.0, 4.0)
"""Before another attempt to transfer a file, beside the library's attempts of each request."""
EVENT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A file of a run directory as it is now: what is appended later is not meant."""

    name: str
    """Its path in the run directory."""
    path: Path
    size: int


def run_files(directory: Path) -> list[RunFile]:
    """Return everything of a run but its checkpoints; of JSON Lines, which grow, the whole lines."""
    found = []
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        hidden = any(part.startswith(".") for part in parts)
        if hidden or path.is_symlink() or not path.is_file() or (parts[0] in STAYS_HERE and parts[1:] != (INDEX,)):
            continue
        size = whole_lines(path) if path.suffix == ".jsonl" else path.stat().st_size
        found.append(RunFile(name="/".join(parts), path=path, size=size))
    return found


def whole_lines(path: Path) -> int:
    """Count the bytes up to the end of the last whole line."""
    if path.stat().st_size == 0:  # which cannot be mapped
        return 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.rfind(b"\n") + 1


def begun(events: bytes | None) -> str | None:
    """Return what two copies of a run have in common: the first event of events.jsonl, which has a time."""
    line, newline, _ = (events or b"").partition(b"\n")
    return line.decode(errors="replace") if newline else None


def begun_here(directory: Path) -> str | None:
    events = directory / "events.jsonl"
    return begun(events.read_bytes()[:EVENT_BYTES]) if events.is_file() else None


def saved_storage(directory: Path) -> StorageConfig:
    """Return `run.storage` of the recipe that a run directory was begun with."""
    recipe: Any = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"), resolve=False)
    return StorageConfig.model_validate((recipe.get("run") or {}).get("storage") or {})


class StoredRun:
    """The run under a bucket's prefix. Only one process writes it: the one that holds the lock of its directory."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.stop = threading.Event()
        """Set: no further file is begun."""
        self._sent: dict[str, tuple[int, int, int]] = {}

    # -- reading ---------------------------------------------------------------------------------------------

    def begun(self) -> str | None:
        return begun(self.bucket.read("events.jsonl", first=EVENT_BYTES))

    def manifests(self, sizes: Mapping[str, int] | None = None) -> dict[int, dict[str, Any]]:
        """Return step -> manifest of every complete checkpoint; `sizes` where it was just listed."""
        sizes = self.bucket.sizes(f"{CHECKPOINTS}/") if sizes is None else sizes
        found = {}
        for step in sorted(_marked(sizes)):
            manifest = checked_manifest(_parsed(self.bucket.read(_key(step, MANIFEST))))
            if manifest is not None and all(
                sizes.get(_key(step, name)) == entry["bytes"] for name, entry in manifest["files"].items()
            ):
                found[step] = manifest
        return found

    def best(self, steps: Iterable[int]) -> int | None:
        index = self.bucket.read(f"{CHECKPOINTS}/{INDEX}")
        return best_of(_parsed(index), list(steps))

    def choose(self, wanted: Wanted, steps: Sequence[int]) -> int:
        """Return the step that is `wanted` of the complete ones; best is the latest where nothing was measured."""
        if not steps:
            raise StorageError(f"{self.bucket.address} holds no complete checkpoint; push one, or correct the address")
        if isinstance(wanted, int):
            if wanted not in steps:
                raise StorageError(
                    f"{self.bucket.address} has no complete checkpoint of step {wanted}; it has "
                    f"{', '.join(map(str, steps))}"
                )
            return wanted
        best = self.best(steps) if wanted == "best" else None
        return max(steps) if best is None else best

    def pull_files(self, directory: Path) -> None:
        """Fetch everything but checkpoints into `directory`."""
        names = [name for name in self.bucket.sizes() if not name.startswith((".", f"{CHECKPOINTS}/step-"))]
        self._transfer(self.bucket.get, [{"key": name, "file": directory / name} for name in names])

    def pull_step(self, step: int, manifest: Mapping[str, Any], directory: Path, leave_out: Sequence[str] = ()) -> None:
        """Fetch a complete checkpoint into the run at `directory`; what is left out is not in its manifest either."""
        files = without(manifest["files"], leave_out)
        with CheckpointStore(directory / CHECKPOINTS).taking_in(step) as path:
            wanted = [
                {"key": _key(step, name), "file": path / name, "size": entry["bytes"], "sha256": entry["sha256"]}
                for name, entry in files.items()
            ]
            self._transfer(self.bucket.get, wanted)
            write_atomically(path / MANIFEST, to_json({**manifest, "files": files}, indent=2) + "\n")

    # -- writing ---------------------------------------------------------------------------------------------

    def push(self, checkpoints: Mapping[int, Path], files: Sequence[RunFile], *, keep: int | None = None) -> None:
        """Store checkpoints (step -> directory) and files, each marker last; retire all but `keep` and the best."""
        sizes = self.bucket.sizes(f"{CHECKPOINTS}/")
        there = self.manifests(sizes) if checkpoints else {}
        new = {}
        for step, path in checkpoints.items():
            manifest = read_manifest(path)
            if manifest is None:
                raise StorageError(f"the checkpoint of step {step} was removed before it could be stored")
            if manifest != there.get(step):
                new[step] = manifest
        # From here on no marker is there for what is being replaced.
        self.bucket.delete(_key(step, MANIFEST) for step in _marked(sizes) & new.keys())
        content = [
            {"file": checkpoints[step] / name, "key": _key(step, name), "sha256": entry["sha256"]}
            for step, manifest in new.items()
            for name, entry in manifest["files"].items()
        ]
        self._transfer(self.bucket.put, content)
        self._push_changed(files)
        markers = [{"file": checkpoints[step] / MANIFEST, "key": _key(step, MANIFEST)} for step in sorted(new)]
        self._transfer(self.bucket.put, markers)
        if keep is not None:
            self.retire(keep)

    def retire(self, keep: int) -> None:
        """Remove all checkpoints but the newest `keep` and the best, and what never became one."""
        sizes = self.bucket.sizes(f"{CHECKPOINTS}/")
        marked = _marked(sizes)
        kept = kept_steps(marked, self.best(marked), keep)
        self._remove({step for name in sizes if (step := _step_in(name)) is not None} - kept, sizes)

    def remove_steps(self, steps: Iterable[int]) -> None:
        self._remove(set(steps), self.bucket.sizes(f"{CHECKPOINTS}/"))

    def remove(self) -> None:
        """Remove the whole run."""
        sizes = self.bucket.sizes()
        self._remove(_marked(sizes), sizes)
        self.bucket.delete(self.bucket.sizes())

    def _remove(self, steps: set[int], sizes: Mapping[str, int]) -> None:
        self.bucket.delete(_key(step, MANIFEST) for step in steps & _marked(sizes))
        self.bucket.delete(name for name in sizes if _step_in(name) in steps and not name.endswith(f"/{MANIFEST}"))

    def _push_changed(self, files: Sequence[RunFile]) -> None:
        """Store files of the run, save those that are as they were the last time."""
        stats = {file: file.path.stat() for file in files}
        states = {file: (stat.st_ino, file.size, stat.st_mtime_ns) for file, stat in stats.items()}
        changed = [file for file in files if self._sent.get(file.name) != states[file]]
        self._transfer(self.bucket.put, [{"file": file.path, "key": file.name, "size": file.size} for file in changed])
        self._sent |= {file.name: states[file] for file in changed}

    def _transfer(self, transfer: Callable[..., None], files: Sequence[Mapping[str, Any]]) -> None:
        """Put or get files, several at a time, each with a few attempts."""
        in_threads([functools.partial(self._try, transfer, **file) for file in files])

    def _try(self, transfer: Callable[..., None], **file: Any) -> None:
        for pause in (*PAUSES_S, None):
            if self.stop.is_set():
                raise StorageError(f"the transfer to {self.bucket.address} was given up")
            try:
                return transfer(**file)
            except StorageError:
                if pause is None:
                    raise
                self.stop.wait(pause)


def without(files: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """Return a manifest's files without those of a name, or in a directory of a name, that is left out."""
    return {name: entry for name, entry in files.items() if not {*name.split("/")} & {*left_out}}


def _marked(sizes: Iterable[str]) -> set[int]:
    """Return the steps whose marker is there."""
    return {step for name in sizes if (step := _step_in(name)) is not None and name == _key(step, MANIFEST)}


def _step_in(key: str) -> int | None:
    parts = key.split("/")
    return step_of(parts[1]) if len(parts) > 2 and parts[0] == CHECKPOINTS else None


def _key(step: int, name: str) -> str:
    return f"{CHECKPOINTS}/{step_name(step)}/{name}"


def _parsed(content: bytes | None) -> Any:
    try:
        return json.loads(content or b"")
    except ValueError:
        return None
