"""Backups of a run while it trains: what a step left is linked aside, and a thread of its own sends it to the store.

No step waits: of the backups that wait for a slow store the oldest is left out, and one that fails is an event and a
warning. The end of the run waits for a bounded time. Before the first step, a run that is not on this machine is
pulled, and what cannot work (no bucket, no rights, another run under the name) is refused.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from troupe.config.run import RunConfig, StorageConfig
from troupe.errors import StorageError, first_line
from troupe.runs.bucket import Bucket
from troupe.runs.checkpoint import CheckpointStore
from troupe.runs.stored_run import CHECKPOINTS, RunFile, StoredRun, begun_here, run_files

log = logging.getLogger(__name__)

ASIDE = ".backup"
Version = tuple[int, str]
"""A checkpoint's step and when it was written: a run that starts again may write the same step anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """The content of one backup: links that stay as they are whatever the run does next."""

    aside: Path
    versions: set[Version]
    checkpoints: Mapping[int, Path]
    files: list[RunFile]


class Backup:
    """The backups of one run, taken by the process that writes it."""

    def __init__(
        self, run: StoredRun, settings: StorageConfig, store: CheckpointStore, on_event: Callable[..., None]
    ) -> None:
        self._run, self._settings, self._store, self._on_event = run, settings, store, on_event
        self._directory = store.directory.parent
        self._waiting: deque[Shipment] = deque()
        self._lock = threading.Lock()
        self._taken: set[Version] = set()
        self._done: set[Version] = set()
        self._failed: str | None = None
        self._count = 0
        shutil.rmtree(self._directory / ASIDE, ignore_errors=True)  # what a killed run left
        # Its thread is a daemon, unlike an executor's: the process can end while a transfer hangs.
        self._thread = ThreadPool(1)
        self._last = self._thread.apply_async(run.bucket.drop_unfinished)

    def after_step(self, step: int) -> None:
        """Hand over what is due after `step`; costs links, never a transfer."""
        every = self._settings.every
        due = bool(self._wanted() - self._taken) if every is None else every and step % every == 0
        if due:
            self._hand_over(self._wanted() - self._taken)

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is on its way any more; False where that takes longer."""
        self._last.wait(seconds)
        return self._last.ready()

    def finish(self, *, wait_s: float | None = None) -> None:
        """Hand over the last state, wait no longer than the bound, and log what is not in the store."""
        started = time.monotonic()
        self._hand_over(self._wanted() - self._done)
        try:
            finished = self.wait(self._settings.wait_s if wait_s is None else wait_s)
        except KeyboardInterrupt:
            finished = False
        self._run.stop.set()
        self._thread.terminate()
        if finished and self._failed is None:
            log.info("%s is backed up to %s", self._directory, self._run.bucket.address)
        else:
            waited = time.monotonic() - started
            self._report_missing(None if finished else f"the store was still busy after {waited:.1f} s")
        shutil.rmtree(self._directory / ASIDE, ignore_errors=True)

    def _report_missing(self, why: str | None) -> None:
        steps = _steps(self._wanted() - self._done)
        what = f"the checkpoint of step {', '.join(map(str, steps))}" if steps else "the last lines of the run's files"
        address, why = self._run.bucket.address, why or self._failed
        self._on_event("backup_incomplete", steps=steps, error=why)
        remedy = f"`python jobs/runs.py push {self._directory}` sends it"
        log.warning("%s is not in %s (%s); %s", what, address, why, remedy)

    def _wanted(self) -> set[Version]:
        """Return the checkpoints that a store should have: the newest and the best."""
        steps = {step for step in (self._store.latest(), self._store.best()) if step is not None}
        return {(step, self._store.manifest(step)["at"]) for step in steps}

    # -- handing over ----------------------------------------------------------------------------------------

    def _hand_over(self, versions: set[Version]) -> None:
        try:
            shipment = self._link_aside(versions)
        except OSError as error:  # a full disk, say
            self._report_failure(versions, error)
            return
        self._taken.update(versions)
        with self._lock:
            self._waiting.append(shipment)
            dropped = [self._waiting.popleft() for _ in range(len(self._waiting) - self._settings.queue)]
        self._last = self._thread.apply_async(self._send_next)
        for old in dropped:
            missed = old.versions - versions
            self._taken.difference_update(missed)  # one that is the best is taken again
            shutil.rmtree(old.aside, ignore_errors=True)
            self._on_event("backup_left_out", steps=_steps(missed), reason="the store is slower than the run")

    def _link_aside(self, versions: set[Version]) -> Shipment:
        self._count += 1
        aside = self._directory / ASIDE / str(self._count)
        aside.mkdir(parents=True)
        checkpoints = {}
        for step in _steps(versions):
            place = aside / CHECKPOINTS / str(step)
            place.mkdir(parents=True)
            checkpoints[step] = self._store.set_aside(step, place)
        files = [
            RunFile(name=file.name, path=_link(file.path, aside / "files" / file.name), size=file.size)
            for file in run_files(self._directory)
        ]
        return Shipment(aside=aside, versions=versions, checkpoints=checkpoints, files=files)

    # -- the thread ------------------------------------------------------------------------------------------

    def _send_next(self) -> None:
        """Send the oldest shipment that was not left out."""
        with self._lock:
            if self._run.stop.is_set() or not self._waiting:
                return
            shipment = self._waiting.popleft()
        started = time.monotonic()
        try:
            self._run.push(shipment.checkpoints, shipment.files, keep=self._settings.keep)
        except Exception as error:  # whatever a store or the library does: training goes on
            if not self._run.stop.is_set():
                self._taken.difference_update(shipment.versions)
                self._report_failure(shipment.versions, error)
        else:
            self._done.update(shipment.versions)
            self._failed = None
            seconds = round(time.monotonic() - started, 3)
            self._on_event("backed_up", steps=_steps(shipment.versions), seconds=seconds)
        finally:
            shutil.rmtree(shipment.aside, ignore_errors=True)

    def _report_failure(self, versions: set[Version], error: Exception) -> None:
        self._failed = first_line(error)
        self._on_event("backup_failed", steps=_steps(versions), error=self._failed)
        log.warning("a backup failed, training goes on: %s", self._failed)


def _steps(versions: set[Version]) -> list[int]:
    return sorted(step for step, _ in versions)


def _link(source: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:  # a file system without links
        shutil.copy2(source, place)
    return place


# -- before the run ------------------------------------------------------------------------------------------


def open_stored_run(settings: RunConfig) -> StoredRun:
    """Return the run in the store that the config names. Raises StorageError where it cannot be used."""
    storage = settings.storage
    assert storage.url is not None
    bucket = Bucket(storage.url, endpoint_url=storage.endpoint_url, region=storage.region, timeout_s=storage.timeout_s)
    bucket = bucket.at(settings.name)
    bucket.check()
    return StoredRun(bucket)


def settle(run: StoredRun, settings: RunConfig) -> None:
    """Pull the run where this machine has none, or make sure that here and there are the same one.

    The caller holds the lock. StorageError where a backup would overwrite another run's.
    """
    path, there = settings.path, run.manifests()
    if not there:
        return  # nothing that could be lost or gone on from
    address = run.bucket.address
    remedy = f"choose another run.name, or remove it: python jobs/runs.py delete {address}"
    if settings.resume == "never":
        raise StorageError(f"run.resume is never, but {address} holds a run at step {max(there)}; {remedy}")
    if not path.exists():
        pull(run, path, there)
    elif begun_here(path) != run.begun():
        raise StorageError(f"{address} holds another run than {path}; {remedy}")
    elif max(there) > (CheckpointStore(path / CHECKPOINTS).latest() or 0):
        raise StorageError(
            f"{address} is at step {max(there)}, which {path} has not; bring it here: python jobs/runs.py pull "
            f"{address} --into {path.parent}"
        )


def pull(run: StoredRun, path: Path, manifests: Mapping[int, Any], steps: set[int] | None = None) -> None:
    """Fetch the run's files and checkpoints, by default the newest and the best, to where nothing is yet."""
    best = run.best(manifests)
    steps = {max(manifests), *([] if best is None else [best])} if steps is None else steps
    aside = path.with_name(f".pulling-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    log.info("fetching %s, steps %s, to %s", run.bucket.address, ", ".join(map(str, sorted(steps))), path)
    try:
        run.pull_files(aside)
        for step in sorted(steps):
            run.pull_step(step, manifests[step], aside)
        os.rename(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
