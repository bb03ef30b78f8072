"""A run that is backed up while it goes on: to a real server, through a proxy that fails, stalls and truncates."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import troupe.runs.bucket
import troupe.runs.stored_run
from tests.fake_run import fake_group
from tests.s3 import S3Proxy, client, proxied
from troupe.config.grpo import GRPOConfig
from troupe.errors import ConfigError, StorageError
from troupe.files import read_json, read_lines
from troupe.report.observers import open_run
from troupe.runs.bucket import Bucket
from troupe.runs.checkpoint import CheckpointStore
from troupe.runs.run import Run
from troupe.runs.stored_run import StoredRun, run_files, whole_lines


@pytest.fixture
def proxy(s3: str, credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    client(s3).create_bucket(Bucket=bucket_of(tmp_path))
    monkeypatch.setattr(troupe.runs.stored_run, "PAUSES_S", (0.01, 0.05))
    with proxied(s3) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.address)
        yield found


def bucket_of(tmp_path: Path) -> str:
    return "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]


def stored(tmp_path: Path, server: str, name: str = "tiny") -> StoredRun:
    """The run as it is in the store, asked past the proxy."""
    return StoredRun(Bucket(f"s3://{bucket_of(tmp_path)}/runs/{name}", endpoint_url=server))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., GRPOConfig]:
    def build(*, name: str = "tiny", steps: int = 4, resume: str = "auto", **storage: Any) -> GRPOConfig:
        storage = {"url": f"s3://{bucket_of(tmp_path)}/runs", "timeout_s": 5, **storage}
        run = {"name": name, "directory": str(tmp_path / "runs"), "resume": resume, "storage": storage}
        return GRPOConfig(steps=steps, run=run, checkpoint={"keep_last": 2})

    return build


def train(config: GRPOConfig, *, until: int | None = None, pause: Callable[[Run], None] = lambda run: None) -> Path:
    """The part of a job that leaves something: lines, a metric and a checkpoint at every step, from where it stood."""
    with open_run(config) as run:
        first = run.checkpoints.latest() or 0
        if first:
            run.resume_from(first)
        for step in run.steps(first + 1, until or config.steps):
            run.log_rollouts(step, [fake_group(random.Random(step), index=step, skill=0.5, branches=2)], limit=1)
            run.log({"reward/mean": step / 10})
            with run.checkpoints.writing(step) as path:
                (path / "model.safetensors").write_bytes(random.Random(step).randbytes(30_000 + step))
                (path / "trainer_state").mkdir()
                (path / "trainer_state" / "rank0.pt").write_bytes(random.Random(-step).randbytes(60_000))
            run.checkpoints.record_metric(step, 1.0 if step == 2 else 0.1)
            run.end_step(step)
            pause(run)
    return run.directory


def kinds(directory: Path) -> list[str]:
    return [event["kind"] for event in read_lines(directory / "events.jsonl")]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def settled(run: Run) -> None:
    """Wait until nothing is on its way, so that every step's backup is taken."""
    assert run._backup is not None
    assert run._backup.wait(60)


# -- what is in the store --------------------------------------------------------------------------------------


def test_the_newest_and_the_best_checkpoint_and_every_file_are_in_the_store(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig]
) -> None:
    def tear(run: Run) -> None:
        settled(run)
        if run.step == 4:  # as a line is that is just being written
            with open(run.directory / "rollouts.jsonl", "a") as file:
                file.write('{"step": 99, "text": "the begin')

    directory = train(config(steps=4), pause=tear)
    run = stored(tmp_path, proxy.server)
    manifests = run.manifests()
    assert sorted(manifests) == [2, 3, 4]  # the best, and the newest two
    assert run.best(manifests) == 2
    back = tmp_path / "back"
    run.pull_files(back)
    for step, manifest in manifests.items():
        run.pull_step(step, manifest, back)
        CheckpointStore(back / "checkpoints").verify(step, hashes=True)
    ours, theirs = contents(directory), contents(back)
    # The end of the last backup cannot be in it, and what is no line is not.
    assert ours.pop("events.jsonl").startswith(theirs.pop("events.jsonl"))
    assert ours.pop("rollouts.jsonl") == theirs.pop("rollouts.jsonl") + b'{"step": 99, "text": "the begin'
    assert theirs == ours
    assert not (directory / ".backup").exists()
    assert kinds(directory).count("backed_up") == 5
    # What had not changed was not sent again.
    assert len([request for request in proxy.seen if request.method == "PUT" and "config.yaml" in request.path]) == 1


class Watcher:
    """Looks at the store after every change: each marker names files that are there, with their hash."""

    def __init__(self, server: str, bucket: str) -> None:
        self._store, self._bucket = client(server), bucket
        self._known: dict[tuple[str, str], bytes] = {}
        self.problems: list[str] = []
        self.markers: list[set[str]] = []

    def __call__(self, request: Any) -> None:
        listed = self._store.list_objects_v2(Bucket=self._bucket).get("Contents", [])
        tags = {item["Key"]: item["ETag"] for item in listed}
        markers = {key for key in tags if key.endswith("/manifest.json") and self._names(key, tags)}
        self.markers.append(markers)

    def _names(self, marker: str, tags: dict[str, str]) -> bool:
        try:
            manifest = json.loads(self._read(marker, tags[marker]))
        except ValueError:
            return False  # one that was cut short names nothing
        for name, entry in manifest["files"].items():
            key = marker.removesuffix("manifest.json") + name
            if key not in tags:
                self.problems.append(f"{marker} names {name}, which is not there")
            elif hashlib.sha256(self._read(key, tags[key])).hexdigest() != entry["sha256"]:
                self.problems.append(f"{marker} names {name}, which is another")
        return True

    def _read(self, key: str, tag: str) -> bytes:
        if (key, tag) not in self._known:
            self._known[key, tag] = self._store.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return self._known[key, tag]


def test_nothing_that_a_marker_names_is_ever_incomplete(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig]
) -> None:
    rng, lock, watcher = random.Random(0), threading.Lock(), Watcher(proxy.server, bucket_of(tmp_path))

    def fault(request: Any) -> str | None:
        with lock:
            truncated = ["truncate"] if request.method in ("PUT", "GET") else []
            return rng.choice(["503", "drop", *truncated]) if rng.random() < 0.2 else None

    def misbehave(run: Run) -> None:
        settled(run)
        proxy.fault = fault

    proxy.after = watcher
    directory = train(config(steps=3), pause=misbehave)
    # A second attempt over what the first left, and over a step that is written anew with other bytes.
    proxy.calm()
    proxy.after = watcher
    store = CheckpointStore(directory / "checkpoints")
    with store.writing(3) as path:
        (path / "model.safetensors").write_bytes(b"other weights")
    run = stored(tmp_path, proxy.address)
    run.push({step: store.path(step) for step in store.steps()}, run_files(directory), keep=2)
    assert watcher.problems == []
    assert len(watcher.markers) > 25
    assert sorted(run.manifests()) == [2, 3]
    assert run.manifests()[3] == read_json(store.path(3) / "manifest.json")


def test_training_does_not_wait_for_a_store_that_stalls_and_the_end_waits_no_longer_than_the_bound(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig], caplog: pytest.LogCaptureFixture
) -> None:
    times = [time.monotonic()]

    def stall(run: Run) -> None:
        proxy.fault = lambda request: "stall"
        times.append(time.monotonic())

    directory = train(config(steps=4, wait_s=0.5, timeout_s=60, queue=1), pause=stall)
    ended = time.monotonic()
    # Any transfer would take a minute at least.
    assert ended - times[0] < 30
    assert ended - times[-1] < 15
    assert read_json(directory / "status.json")["state"] == "finished"
    events = read_lines(directory / "events.jsonl")
    assert "backup_left_out" in kinds(directory)
    assert events[-1]["kind"] == "backup_incomplete"
    assert events[-1]["steps"] == [2, 4]
    assert f"`python jobs/runs.py push {directory}` sends it" in caplog.text
    assert not (directory / ".backup").exists()


def test_a_backup_that_fails_is_an_event_and_a_warning_and_the_next_one_makes_up_for_it(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_for_a_while(run: Run) -> None:
        settled(run)
        refused = "403" if run.step in (1, 2) else None
        proxy.fault = lambda request: refused

    directory = train(config(steps=4), pause=refuse_for_a_while)
    assert "a backup failed, training goes on: " in caplog.text
    failed = [event for event in read_lines(directory / "events.jsonl") if event["kind"] == "backup_failed"]
    assert [event["steps"] for event in failed] == [[2], [2, 3]]
    assert "refuses these credentials" in failed[0]["error"]
    assert sorted(stored(tmp_path, proxy.server).manifests()) == [2, 4]


def test_a_checkpoint_that_the_run_removes_meanwhile_arrives_whole(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig]
) -> None:
    held = threading.Event()

    def slow(request: Any) -> str | None:
        if request.method == "PUT" and "step-000001/model" in request.path:
            held.wait(60)
        return None

    def hold(run: Run) -> None:
        if run.step == 4:
            assert run.checkpoints.steps() == [2, 3, 4]
            held.set()

    proxy.fault = slow
    train(config(steps=4, keep=None, queue=9), pause=hold)
    manifests = stored(tmp_path, proxy.server).manifests()
    assert sorted(manifests) == [1, 2, 3, 4]
    stored(tmp_path, proxy.server).pull_step(1, manifests[1], tmp_path / "back")


def test_a_step_that_is_written_anew_after_a_restart_replaces_the_one_in_the_store(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig]
) -> None:
    with open_run(config(steps=1)) as run:
        for attempt in (b"lost with a worker", b"trained again"):
            for step in run.steps(1, 1):
                with run.checkpoints.writing(step) as path:
                    (path / "model.safetensors").write_bytes(attempt)
                run.end_step(step)
            settled(run)
            run.start_again(RuntimeError("a worker died"))
    there = stored(tmp_path, proxy.server)
    assert there.bucket.read("checkpoints/step-000001/model.safetensors") == b"trained again"
    assert there.manifests()[1] == read_json(run.checkpoints.path(1) / "manifest.json")


@pytest.mark.parametrize(
    ("content", "whole"), [(b"", 0), (b"half", 0), (b"one\n", 4), (b"one\nhal", 4), (b"one\n" + b"x" * 200_000, 4)]
)
def test_only_whole_lines_are_stored(content: bytes, whole: int, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(content)
    assert whole_lines(tmp_path / "lines.jsonl") == whole


def test_every_n_steps_and_only_at_the_end(proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig]) -> None:
    # The best is step 2, and at the end there is nothing left to send but the last lines.
    for every, expected in ((3, [[2, 3], [4]]), (0, [[2, 4]])):
        directory = train(config(name=f"every{every}", steps=4, every=every), pause=settled)
        events = read_lines(directory / "events.jsonl")
        assert [event["steps"] for event in events if event["kind"] == "backed_up"] == expected


# -- on another machine ----------------------------------------------------------------------------------------


def test_a_run_whose_directory_is_gone_goes_on_where_it_stood(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig]
) -> None:
    with pytest.raises(ConfigError, match=r"run.resume is must, but .* holds no complete checkpoint"):
        train(config(resume="must"))
    directory = train(config(every=0), until=3)
    begun = read_lines(directory / "events.jsonl")[0]
    shutil.rmtree(directory)
    # A pull that breaks off leaves no run.
    proxy.fault = lambda request: "403" if request.method == "GET" and "step-000003/trainer" in request.path else None
    with pytest.raises(StorageError, match=r"does not give checkpoints/step-000003/trainer_state/rank0.pt"):
        train(config())
    assert list(directory.parent.iterdir()) == []
    proxy.calm()
    train(config(resume="must", every=0))
    assert [line["step"] for line in read_lines(directory / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [line["step"] for line in read_lines(directory / "rollouts.jsonl")] == [1, 2, 3, 4]
    assert CheckpointStore(directory / "checkpoints").best() == 2
    assert read_lines(directory / "events.jsonl")[0] == begun
    assert "resumed" in kinds(directory)
    assert sorted(stored(tmp_path, proxy.server).manifests()) == [2, 3, 4]
    assert list(directory.parent.glob(".*")) == []


def test_another_runs_backup_is_never_overwritten(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig]
) -> None:
    directory = train(config(steps=1, every=0))
    there = stored(tmp_path, proxy.server).manifests()
    with pytest.raises(StorageError, match=r"run.resume is never, but s3://.*/runs/tiny holds a run at step 1; choose"):
        train(config(resume="never"))
    shutil.move(directory, tmp_path / "moved")
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "events.jsonl").write_text('{"kind": "opened", "at": "another time"}\n')
    with pytest.raises(StorageError, match=r"holds another run than .*python jobs/runs.py delete s3://"):
        train(config())
    shutil.rmtree(directory)
    shutil.move(tmp_path / "moved", directory)
    CheckpointStore(directory / "checkpoints").remove(1)
    with pytest.raises(
        StorageError, match=r"is at step 1, which .* has not; bring it here: python jobs/runs.py pull s3://"
    ):
        train(config())
    assert stored(tmp_path, proxy.server).manifests() == there


# -- what is refused before anything starts --------------------------------------------------------------------


def test_a_store_that_cannot_be_used_is_said_before_the_run_has_a_directory(
    proxy: S3Proxy, tmp_path: Path, config: Callable[..., GRPOConfig]
) -> None:
    with pytest.raises(StorageError, match=r"there is no bucket 'nobodys'"):
        train(config(url="s3://nobodys/runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"url": "bucket/x"}, "url is written s3://bucket/prefix"),
        ({"endpoint_url": "localhost:9000"}, "endpoint_url is written https://host"),
        ({"endpoint_url": "https://me:secret@host"}, "endpoint_url holds no credentials; set AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_wrong_address_is_one_sentence(
    setting: dict[str, str], sentence: str, config: Callable[..., GRPOConfig], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        config(**setting)
