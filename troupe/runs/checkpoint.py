"""Checkpoints that can be trusted: written aside, named by a manifest that comes last, then moved into place.

`step-000010/` exists only whole: its `manifest.json` lists every file with size and SHA-256, and a reader trusts
nothing else. What is inside (weights, optimizer, `state.json`) is the business of the actors and the job.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from troupe.disk import disk_errors, when_there_is_room
from troupe.errors import CheckpointError
from troupe.files import now, read_json, sha256_of, to_json, write_atomically
from troupe.names import step_name, step_of

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
INDEX = "index.json"
ONLY_TO_RESUME = ("trainer_state", STATE)
"""Parts of a checkpoint that a model does without."""
HASHING_THREADS = 4
"""hashlib releases the interpreter while it works, so large files are hashed side by side."""

Wanted = Literal["best", "latest"] | int
Check = Callable[[Path], str | None]
"""What is wrong with the files of a checkpoint's directory; None where nothing is."""

_WHOLE: set[tuple[Path, tuple[int, ...]]] = set()
"""Models that `model_damage` has read to the end: the checkpoint's directory, and when its files were last written."""

ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "num_experts",
    "num_local_experts",
    "moe_intermediate_size",
)
"""Keys of config.json that decide which tensors there are; the others differ between library versions."""


def model_identity(config_json: Mapping[str, Any], tokenizer_len: int) -> str:
    """Return what must agree between a checkpoint and the run that loads it.

    Example: `qwen2-h128-l4-v512-t512-3fa9c1d2e0b4` (width, layers, vocabulary, tokenizer, hash of the architecture).
    """
    inner = config_json.get("text_config") or config_json
    facts = {key: inner[key] for key in ARCHITECTURE if inner.get(key) is not None}
    digest = hashlib.sha256(json.dumps([facts, tokenizer_len], sort_keys=True).encode()).hexdigest()[:12]
    size = f"h{facts.get('hidden_size')}-l{facts.get('num_hidden_layers')}-v{facts.get('vocab_size')}"
    return f"{facts.get('model_type', 'model')}-{size}-t{tokenizer_len}-{digest}"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the job's own state (step, data position, ...) into a checkpoint that is being written."""
    (path / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def checked_manifest(found: Any) -> dict[str, Any] | None:
    """Return a manifest as parsed from JSON; None where it lacks what readers rely on."""
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("step"), int)
        or not isinstance(found.get("files"), dict)
    ):
        return None
    known = {"bytes": int, "sha256": str}
    for entry in found["files"].values():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in known.items()):
            return None
    return {**found, "metadata": found["metadata"] if isinstance(found.get("metadata"), dict) else {}}


def checked_index(found: Any) -> dict[str, Any]:
    """index.json as parsed from JSON; one that lacks a key, without which `best` would be a guess, counts as empty."""
    found = found if isinstance(found, dict) else {}
    metrics = found.get("metrics")
    if not isinstance(metrics, dict) or not isinstance(found.get("higher_is_better"), bool):
        return {"higher_is_better": True, "metrics": {}}
    measured = {step: value for step, value in metrics.items() if isinstance(value, int | float)}
    return {"higher_is_better": found["higher_is_better"], "metrics": measured}


def best_of(index: Mapping[str, Any] | None, steps: Collection[int]) -> int | None:
    """Return the step with the best metric in index.json; the earliest of equals, None when none was measured."""
    index = checked_index(index)
    sign = 1 if index["higher_is_better"] else -1
    measured = [step for step in steps if str(step) in index["metrics"]]
    return max(measured, key=lambda step: (sign * index["metrics"][str(step)], -step), default=None)


def kept_steps(steps: Collection[int], best: int | None, keep: int | None) -> set[int]:
    """Return the newest `keep` of the steps (None: all) and the best."""
    newest = sorted(steps) if keep is None else sorted(steps)[-keep:]
    return {*newest, *([best] if best is not None else [])}


class CheckpointStore:
    """The checkpoints of one run. Only the process that holds the run's lock writes.

    What is written `in_background` is synced to the disk, digested and moved into place by a thread; the next question
    about checkpoints waits for it, so that there is never a second opinion on which ones there are.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int = 2,
        in_background: bool = False,
        on_event: Callable[..., None] = lambda kind, **fields: None,
    ) -> None:
        self.directory = Path(directory)
        self._keep_last = keep_last
        self._in_background = in_background
        self._on_event = on_event
        self._reported: set[Path] = set()
        self._completing: Future[None] | None = None

    # -- reading ---------------------------------------------------------------------------------------------

    def path(self, step: int) -> Path:
        return self.directory / step_name(step)

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, oldest first; an incomplete directory is reported once."""
        self.settle()
        found = []
        for path in self.directory.glob("step-*"):
            step = step_of(path.name)
            if not path.is_dir() or step is None:
                continue
            problem = self._problem(path)
            if problem is None:
                found.append(step)
            else:
                self._report(path, problem)
        return sorted(found)

    def _report(self, path: Path, problem: str) -> None:
        if path not in self._reported:
            self._reported.add(path)
            log.warning("the checkpoint %s is passed over: %s", path, problem)
            self._on_event("checkpoint_ignored", path=path.name, reason=problem)

    def complete(self, step: int) -> bool:
        self.settle()
        return self._problem(self.path(step)) is None

    def latest(self) -> int | None:
        """Return the newest complete step."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Return the complete step with the best recorded metric, None when none was measured."""
        return best_of(self._index(), self.steps())

    def choose(self, wanted: Wanted, check: Check | None = None) -> int:
        """Return the step that is wanted, every byte of it compared with its manifest; `best` is the newest where
        nothing was measured. In place of a damaged `best` or `latest` comes the next one, and the log names the damaged
        one.

        `check` names what is wrong with a checkpoint's files, by default `damage`. CheckpointError where there is none.
        """
        check = check or damage
        steps, problems = self.steps(), []
        if isinstance(wanted, int) and wanted not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"{self.directory.parent} has no complete checkpoint of step {wanted}; it has {known}"
            )
        for step in [wanted] if isinstance(wanted, int) else self.preferred(wanted):
            problem = check(self.path(step))
            if problem is None:
                return step
            problems.append(f"{self.path(step).name}: {problem}")
            if not isinstance(wanted, int):
                self._report(self.path(step), problem)
        if problems:
            raise CheckpointError(
                f"{self.directory} holds no whole checkpoint ({'; '.join(problems)}); copy or fetch it again"
            )
        raise CheckpointError(
            f"{self.directory.parent} has no complete checkpoint yet; let the run write one, or give a checkpoint "
            f"directory"
        )

    def resumable(self, check: Check | None = None, *, model: str | None = None) -> int | None:
        """Return the newest whole step, for the run that goes on from it; None where it has none at all. `model`: see
        `verify`.

        What is damaged is renamed `damaged-step-...`, out of the way of every reader. CheckpointError where nothing is
        whole: to begin anew silently would drop what the run has logged.
        """
        self.require_some()
        newest = self.latest()
        if newest is None:
            return None
        self.verify(newest, model=model)
        damaged: list[Path] = []

        def noted(path: Path) -> str | None:
            problem = (check or damage)(path)
            if problem is not None:
                damaged.append(path)
            return problem

        try:
            step = self.choose("latest", noted)
        except CheckpointError as error:
            raise CheckpointError(f"{error}, or begin anew: run.resume=never moves this run aside") from None
        for path in damaged:
            _move_aside(path)
        if damaged:
            self._point_links()
        return step

    def require_some(self) -> None:
        """CheckpointError where there are checkpoints and not one is complete."""
        broken = [path for path in self.directory.glob("step-*") if step_of(path.name) is not None]
        if broken and self.latest() is None:
            newest = max(broken)
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} is complete ({newest.name}: {self._problem(newest)}); "
                "bring one back, or begin anew: run.resume=never moves this run aside"
            )

    def preferred(self, wanted: Literal["best", "latest"], *, also: Collection[int] = ()) -> list[int]:
        """Return the complete steps, the one that is wanted first, then what takes its place where that one is damaged.

        latest: newest first; best: best first, then those that were not measured, newest first. `also`: steps that have
        their place among them whether they are kept or not.
        """
        steps = sorted({*self.steps(), *also}, reverse=True)
        if wanted == "latest":
            return steps
        index, ranked = self._index(), []
        while (best := best_of(index, steps)) is not None:
            ranked.append(best)
            steps.remove(best)
        return ranked + steps

    def manifest(self, step: int) -> dict[str, Any]:
        """step, at, metadata and files of a complete checkpoint."""
        self.verify(step)
        return dict(read_json(self.path(step) / MANIFEST))

    def load_state(self, step: int, **needed: type) -> dict[str, Any]:
        """Return what `save_state` wrote; CheckpointError unless it has the `needed` keys, each of its type."""
        self.verify(step)
        state = read_json(self.path(step) / STATE)
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.path(step)} has no {STATE}; it cannot be resumed, only loaded as a model")
        for key, kind in needed.items():
            if not isinstance(state.get(key), kind):
                raise CheckpointError(
                    f"{self.path(step) / STATE} says {key}={state.get(key)!r}, which is no {kind.__name__}; remove "
                    f"{self.path(step)}, and the checkpoint before it is taken"
                )
        return state

    def verify(self, step: int, *, hashes: bool = False, model: str | None = None) -> None:
        """Raise CheckpointError unless the checkpoint is whole and, where given, of the `model` of that identity.

        Sizes are always compared; `hashes` reads every byte.
        """
        self.settle()
        path = self.path(step)
        problem = self._problem(path) or (damage(path) if hashes else None)
        if problem is not None:
            raise CheckpointError(f"{path} cannot be used: {problem}; remove it, and an older checkpoint is taken")
        saved = (read_manifest(path) or {"metadata": {}})["metadata"].get("model")
        if model is not None and saved is not None and saved != model:
            raise CheckpointError(
                f"{path} holds the model {saved}, this run trains {model}; give the recipe that it was begun with, "
                "or another run.name"
            )

    def _problem(self, path: Path) -> str | None:
        """Return why `path` is not a complete checkpoint, or None."""
        manifest = read_manifest(path)
        if manifest is None:
            return f"it has no readable {MANIFEST}, so it was not written to its end"
        if path.name != step_name(manifest["step"]):
            return f"its {MANIFEST} is of step {manifest['step']}"
        for name, entry in manifest["files"].items():
            try:
                size = (path / name).stat().st_size
            except OSError:
                return f"{name} is missing"
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, the manifest says {entry['bytes']}"
        return None

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, step: int, fill: Callable[[Path], None], *, metadata: Mapping[str, Any], needs: int = 0) -> None:
        """Write the checkpoint of `step`, whose directory `fill` fills, as `writing`; waits for room on a full disk."""

        def attempt() -> None:
            with self.writing(step, metadata, needs=needs) as path:
                fill(path)

        when_there_is_room(attempt, f"the checkpoint of step {step}", self.directory)

    @contextlib.contextmanager
    def writing(self, step: int, metadata: Mapping[str, Any] | None = None, *, needs: int = 0) -> Iterator[Path]:
        """Provide a directory to fill; after the block it becomes the checkpoint of `step`, or nothing at all.

        `metadata` goes into the manifest; its `model` is what `verify(model=...)` compares. `needs`: about how many
        bytes it will have, which a full disk's error states; where there is an earlier checkpoint, that one's size is
        known.
        """
        self.settle()
        needs = self._last_size() or needs
        with self._filling(step, needs) as temporary:
            yield temporary
        thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._completing = thread.submit(self._complete, temporary, step, metadata or {}, needs)
        thread.shutdown(wait=False)
        if not self._in_background:
            self.settle()

    def settle(self) -> None:
        """Wait until the last checkpoint written is complete, and retire old ones. CheckpointError where it failed."""
        completing, self._completing = self._completing, None
        if completing is not None:
            completing.result()
            self.retire(self._keep_last)

    def _complete(self, temporary: Path, step: int, metadata: Mapping[str, Any], needs: int) -> None:
        with self._whole_or_gone(temporary, step, needs):
            when_there_is_room(
                lambda: _write_manifest(temporary, step, metadata), f"the checkpoint of step {step}", self.directory
            )
            self._move_into_place(temporary, self.path(step))

    @contextlib.contextmanager
    def taking_in(self, step: int) -> Iterator[Path]:
        """Provide a directory to fill with the checkpoint of `step` from elsewhere, its manifest included."""
        with self._filling(step) as temporary:
            yield temporary
            self._move_into_place(temporary, self.path(step))
        self._point_links()

    @contextlib.contextmanager
    def _filling(self, step: int, needs: int = 0) -> Iterator[Path]:
        temporary = self.directory / f".writing-{self.path(step).name}"
        with self._whole_or_gone(temporary, step, needs):
            self._clear_leftovers()
            temporary.mkdir(parents=True)
            yield temporary

    @contextlib.contextmanager
    def _whole_or_gone(self, temporary: Path, step: int, needs: int) -> Iterator[None]:
        """Remove what was written where the block fails; a disk that does not take it is one sentence."""
        with disk_errors(f"the checkpoint of step {step}", self.path(step), needs=needs):
            try:
                yield
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def _last_size(self) -> int:
        """Bytes of the newest complete checkpoint; 0 where there is none."""
        step = self.latest()
        files = (read_manifest(self.path(step)) or {"files": {}})["files"] if step is not None else {}
        return sum(entry["bytes"] for entry in files.values())

    def set_aside(self, step: int, aside: Path, *, leave_out: Sequence[str] = ()) -> Path:
        """Return the checkpoint as hard links in the empty directory `aside`, which stay when the run removes its own.

        On a file system without links it is the checkpoint itself, which lasts as long as the run keeps it.
        """
        source = self.path(step)
        try:
            shutil.copytree(
                source, aside, copy_function=os.link, ignore=shutil.ignore_patterns(*leave_out), dirs_exist_ok=True
            )
        except (OSError, shutil.Error):
            shutil.rmtree(aside, ignore_errors=True)
            return source
        return aside

    def remove(self, step: int) -> None:
        """Remove the checkpoint of `step`; a kill in the middle leaves nothing under its name."""
        self._remove(self.path(step))
        self._point_links()

    def record_metric(self, step: int, value: float, higher_is_better: bool = True) -> None:
        """Remember what was measured at `step`, before or after its checkpoint; it decides which one is best."""
        if value != value:
            return
        metrics = {**self._index()["metrics"], str(step): float(value)}
        self.directory.mkdir(parents=True, exist_ok=True)
        index = {"higher_is_better": higher_is_better, "metrics": metrics}
        write_atomically(self.directory / INDEX, to_json(index, indent=2) + "\n")
        self.retire(self._keep_last)

    def _index(self) -> dict[str, Any]:
        return checked_index(read_json(self.directory / INDEX))

    def _clear_leftovers(self) -> None:
        """Remove what a killed writer left; nobody ever trusted it."""
        for pattern in (".writing-*", ".retired-*"):
            for path in self.directory.glob(pattern):
                if pattern == ".writing-*":
                    self._on_event("checkpoint_leftover_removed", path=path.name)
                shutil.rmtree(path, ignore_errors=True)

    def _move_into_place(self, temporary: Path, path: Path) -> None:
        if path.exists():
            self._remove(path)
        os.rename(temporary, path)
        _sync(self.directory)

    def retire(self, keep: int) -> None:
        """Keep the newest `keep` and the best; `latest` and `best` point at them, for people."""
        steps = self.steps()
        for step in set(steps) - kept_steps(steps, self.best(), keep):
            self._remove(self.path(step))
        self._point_links()

    def _point_links(self) -> None:
        for name, step in (("latest", self.latest()), ("best", self.best())):
            if step is None:
                (self.directory / name).unlink(missing_ok=True)
            else:
                _point(self.directory / name, self.path(step).name)

    def _remove(self, path: Path) -> None:
        # Renamed first: a kill in the middle must not leave half of a checkpoint under its name.
        retired = path.with_name(f".retired-{path.name}")
        os.rename(path, retired)
        shutil.rmtree(retired, ignore_errors=True)


def _write_manifest(path: Path, step: int, metadata: Mapping[str, Any]) -> None:
    """List every file of `path` in its manifest, once all of them are on the disk."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        hashes = list(pool.map(_sync_and_hash, files))
    entries = {
        file.relative_to(path).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, hashes, strict=True)
    }
    manifest = {"step": step, "at": now(), "metadata": dict(metadata), "files": entries}
    write_atomically(path / MANIFEST, to_json(manifest, indent=2) + "\n")
    _sync(path)


def _sync_and_hash(file: Path) -> str:
    _sync(file)
    return sha256_of(file)


def damage(
    path: Path, *, leave_out: Collection[str] = (), mine: Callable[[str], bool] = lambda name: True
) -> str | None:
    """Return what is wrong with the files of a complete checkpoint, every byte of which is read; None where nothing is.

    Files that are, or lie in, something named in `leave_out` are left out, and so are those that are not `mine`.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return f"it has no readable {MANIFEST}"
    names = [name for name in manifest["files"] if not {*name.split("/")} & {*leave_out} and mine(name)]

    def compare(name: str) -> str | None:
        try:
            same = sha256_of(path / name) == manifest["files"][name]["sha256"]
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None if same else f"{name} has another SHA-256 than the manifest says"

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return next((problem for problem in pool.map(compare, names) if problem), None)


def model_damage(path: Path) -> str | None:
    """Return `damage` of the parts that make the model; the trainer's state, several times their size, is not read.
    What a process has found whole once it does not read again until a file was written: a job looks for its model
    several times.
    """
    files = [path / name for name in (MANIFEST, *sorted((read_manifest(path) or {"files": ()})["files"]))]
    mark = (path.resolve(), tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files))
    problem = None if mark in _WHOLE else damage(path, leave_out=ONLY_TO_RESUME)
    if problem is None:
        _WHOLE.add(mark)
    return problem


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a checkpoint's directory; None where there is none that can be trusted."""
    return checked_manifest(read_json(path / MANIFEST))


def _move_aside(path: Path) -> None:
    """Rename a damaged checkpoint: nothing is deleted, and nobody takes it for one."""
    number = 0
    while (aside := path.with_name(f"damaged-{path.name}" + (f".{number}" if number else ""))).exists():
        number += 1
    os.rename(path, aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point(link: Path, target: str) -> None:
    """Make a relative symbolic link, for people only; a file system without links does without."""
    temporary = link.with_name(f".{link.name}.link")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
