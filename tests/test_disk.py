"""A full disk pauses a run, and what was computed is written when there is room."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.disks import small_disk_at
from troupe import disk
from troupe.config.grpo import GRPOConfig
from troupe.disk import patient
from troupe.errors import CheckpointError, DataError
from troupe.files import JsonLines, read_json, read_lines, write_atomically
from troupe.report.observers import open_run
from troupe.runs.checkpoint import CheckpointStore, save_state

KIB = 1024
LINE = {"text": "x" * 40 * KIB}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "RETRY_S", 0.02)


@pytest.fixture
def waits() -> list[str]:
    """What waited for room in a `patient` block."""
    return []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with small_disk_at(tmp_path / "small", "256k") as place:
        yield place


@contextlib.contextmanager
def full(place: Path, until: Callable[[], bool]) -> Iterator[None]:
    """The disk has no room left until a condition holds."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"0" * KIB):
            pass

    def make_room() -> None:
        while not until():
            time.sleep(0.01)
        filler.unlink()

    thread = threading.Thread(target=make_room)
    thread.start()
    yield
    thread.join()


def test_a_line_waits_for_room_and_is_written_once(small_disk: Path, waits: list[str]) -> None:
    lines = JsonLines(small_disk / "metrics.jsonl")
    lines.append({"step": 1})
    tried = time.monotonic() + 0.2
    with (
        patient(60, lambda what, seconds: waits.append(what)),
        full(small_disk, lambda: time.monotonic() > tried),
    ):
        lines.append({"step": 2, **LINE})
        lines.append({"step": 3})
    assert [line["step"] for line in read_lines(lines.path)] == [1, 2, 3]
    assert waits == ["metrics.jsonl"]


def test_a_line_that_does_not_fit_leaves_no_part_behind(small_disk: Path) -> None:
    lines = JsonLines(small_disk / "metrics.jsonl")
    lines.append({"step": 1})
    before = lines.path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        lines.append({"step": 2, "text": "x" * 400 * KIB})
    assert lines.path.read_bytes() == before


def test_patience_has_an_end_and_other_errors_do_not_wait(tmp_path: Path, waits: list[str]) -> None:
    asked: list[float] = []

    def fails(error: Exception) -> None:
        asked.append(time.monotonic())
        raise error

    def attempts(error: Exception) -> int:
        asked.clear()
        with pytest.raises(type(error)):
            disk.when_there_is_room(lambda: fails(error), "it", tmp_path)
        return len(asked)

    no_room = OSError(errno.ENOSPC, "No space left on device")
    assert attempts(no_room) == 1  # outside of a run
    with patient(0.1, lambda what, seconds: waits.append(what)):
        assert attempts(no_room) > 2
        assert attempts(OSError(errno.EROFS, "Read-only file system")) == 1
        assert attempts(DataError("another matter")) == 1
        quota = CheckpointError("cannot be written")
        quota.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
        assert attempts(quota) > 2  # as the error of a worker that a process passes on
    assert attempts(no_room) == 1
    assert waits == []


def test_a_file_that_is_replaced_stays_whole_while_it_waits(small_disk: Path, waits: list[str]) -> None:
    path, seen = small_disk / "index.json", list[str]()
    write_atomically(path, "[1]")
    with (
        patient(60, lambda what, seconds: waits.append(what)),
        full(small_disk, lambda: bool(seen)),
    ):
        watcher = threading.Timer(0.2, lambda: seen.append(path.read_text()))
        watcher.start()
        write_atomically(path, "[" + "2," * 20 * KIB + "2]")
    assert seen == ["[1]"]
    assert read_json(path)[-1] == 2
    assert waits == ["index.json"]
    assert sorted(file.name for file in small_disk.iterdir()) == ["index.json"]


def test_a_checkpoint_waits_for_room_and_is_whole(small_disk: Path, waits: list[str]) -> None:
    store = CheckpointStore(small_disk / "checkpoints")
    filled: list[Path] = []

    def fill(path: Path) -> None:
        filled.append(path)
        (path / "model.safetensors").write_bytes(b"7" * 100 * KIB)
        save_state(path, {"step": 3})

    with (
        patient(60, lambda what, seconds: waits.append(what)),
        full(small_disk, lambda: len(filled) > 2),
    ):
        store.write(3, fill, metadata={"model": "m"})
    store.verify(3, hashes=True)
    assert waits == ["the checkpoint of step 3"]
    assert [path.name for path in store.directory.iterdir() if path.name.startswith(".writing")] == []


def test_a_console_on_a_full_disk_loses_lines_and_no_program(small_disk: Path) -> None:
    program = (
        "import sys\nfrom troupe.secrets import mask_console\nmask_console()\n"
        "for n in range(500): print('x' * 1000, flush=True)\nsys.exit(7)"
    )
    with open(small_disk / "job.log", "wb") as log:
        ran = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    assert ran.returncode == 7
    assert (small_disk / "job.log").read_text().startswith("x" * 1000 + "\n")


def test_a_run_goes_on_by_itself_and_tells_where_it_waited(small_disk: Path) -> None:
    config = GRPOConfig(steps=2, run={"name": "tiny", "directory": str(small_disk), "watch": {"timeline_steps": []}})
    with open_run(config) as run:
        run.end_step(0)
        for step in run.steps(1, 2):
            began = time.monotonic()
            room = full(small_disk, lambda began=began: time.monotonic() > began + 0.3)  # type: ignore[misc]
            with room if step == 2 else contextlib.nullcontext():
                run.log({"reward/mean": 0.5, **{f"extra/{n}": 0.1 for n in range(400)}})
                run.end_step(step)
    assert [line["step"] for line in read_lines(run.directory / "metrics.jsonl")] == [0, 1, 2]
    assert read_json(run.directory / "status.json")["state"] == "finished"
    told = [event for event in read_lines(run.directory / "events.jsonl") if event["kind"] == "waited_for_room"]
    assert [event["what"] for event in told][:1] == ["metrics.jsonl"]
    assert told[0]["seconds"] > 0
