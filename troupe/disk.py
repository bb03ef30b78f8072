"""What a full or broken disk looks like, whatever library writes, and the sentence that is made of it."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from troupe.errors import CheckpointError, TroupeError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
FULL = (errno.ENOSPC, errno.EDQUOT)
SAID = re.compile(r"PytorchStreamWriter failed|inline_container\.cc|No space left on device|os error 28|quota exceeded")
"""How torch's and safetensors' writers, and errors that come as text from another process, say it."""
RETRY_S = 2.0
TOLD_EVERY_S = 60.0

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class Patience:
    """Bounds of a run's waiting for room on a full disk."""

    seconds: float = 0.0
    waited: Callable[[str, float], None] = lambda what, seconds: None
    """Called with what was written in the end, and the seconds that it waited."""
    told_at: float = -math.inf


_patience = Patience()


@contextlib.contextmanager
def unless_full() -> Iterator[None]:
    """Leave out what the block writes where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


@contextlib.contextmanager
def patient(seconds: float, waited: Callable[[str, float], None]) -> Iterator[None]:
    """Let a full disk pause what `when_there_is_room` writes in the block, at most `seconds`; then it is an error."""
    global _patience
    before, _patience = _patience, Patience(seconds, waited)
    try:
        yield
    finally:
        _patience = before


def when_there_is_room(write: Callable[[], T], what: str, path: Path) -> T:
    """Return what `write` returns, which is called again while the disk of `path` is full.

    What it raises otherwise, and outside of `patient`, is raised at once; so `write` must leave nothing half done.
    """
    started, patience = time.monotonic(), _patience
    while True:
        try:
            written = write()
            break
        except Exception as error:
            now = time.monotonic()
            if now - started >= patience.seconds or disk_errno(error) not in FULL:
                raise
            if now - patience.told_at >= TOLD_EVERY_S:
                patience.told_at = now
                log.warning(
                    "the disk is full: %s waits for room, %s; the run goes on by itself when there is room, and ends "
                    "after %.0f s (run.wait_for_room_s)",
                    what,
                    room(path),
                    patience.seconds,
                )
        time.sleep(min(RETRY_S, patience.seconds))
    if patience.told_at >= started:
        patience.waited(what, time.monotonic() - started)
    return written


@contextlib.contextmanager
def disk_errors(what: str, path: Path, *, needs: int = 0) -> Iterator[None]:
    """Around the writing of `what` to `path`, of about `needs` bytes: a disk that does not take it is one sentence."""
    try:
        yield
    except TroupeError:
        raise
    except Exception as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        raise CheckpointError(f"{what} cannot be written to {path}: {problem}; {room(path, needs)}") from error


@contextlib.contextmanager
def made_once(target: Path, what: str) -> Iterator[Path]:
    """Provide a directory to write `what` into, which becomes `target` at the end of the block; where another process
    made it meanwhile, that one stays.
    """
    building = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    with disk_errors(what, target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield building
            try:
                building.rename(target)
            except OSError:
                if not any(target.glob("config.json")):
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)


def disk_problem(error: BaseException) -> str | None:
    """Return what is wrong with the disk, where that is what `error`, or one behind it, states."""
    number = disk_errno(error)
    return None if number is None else os.strerror(number)


def disk_errno(error: BaseException) -> int | None:
    """Return the number of the disk's error that `error`, or one behind it, states; None where there is none."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno in DISK_ERRORS:
            return behind.errno
        if SAID.search(str(behind)):
            return errno.ENOSPC
        # Ray gives what a worker raised as `cause`.
        behind = getattr(behind, "cause", None) or behind.__cause__ or behind.__context__
    return None


def room(path: Path, needs: int = 0) -> str:
    """Return `it needs 1.2 GiB, and 310.0 MiB are free there; ...`"""
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    needed = f"it needs about {human_bytes(needs)}, and " if needs else ""
    return (
        f"{needed}{human_bytes(shutil.disk_usage(there).free)} are free there; make room, or choose a "
        f"directory on another disk"
    )


def human_bytes(size: float) -> str:
    """Return 1536 -> 1.5 KiB"""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
    return f"{size:.0f} B" if power == 0 else f"{size / 1024**power:.1f} {units[power]}"
