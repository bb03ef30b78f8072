"""A model by its address in a store: a run, one of its checkpoints, or files of a model; fetched once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import CREDENTIALS, S3Proxy, client, proxied
from troupe.errors import CheckpointError, StorageError
from troupe.runs.bucket import Bucket
from troupe.runs.checkpoint import CheckpointStore, save_state
from troupe.runs.model_paths import locate
from troupe.runs.provenance import provenance
from troupe.runs.storage import fetch
from troupe.runs.stored_run import StoredRun, run_files


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with steps 1 to 3, of which the second is the best."""
    directory = tmp_path_factory.mktemp("runs") / "x"
    store = CheckpointStore(directory / "checkpoints", keep_last=3)
    for step in (1, 2, 3):
        with store.writing(step) as path:
            (path / "config.json").write_text("{}")
            (path / "model.safetensors").write_bytes(os.urandom(1000))
            (path / "trainer_state").mkdir()
            (path / "trainer_state" / "rank0.pt").write_bytes(os.urandom(5000))
            save_state(path, {"step": step})
        store.record_metric(step, {1: 0.1, 2: 0.9, 3: 0.5}[step])
    (directory / "config.yaml").write_text("run: {name: x}\nmodel: {type: pretrained, path: s3://elsewhere/base}\n")
    (directory / "environment.json").write_text('{"program": "train_grpo.py"}')
    return directory


@pytest.fixture(scope="module")
def store_with_run(s3: str, run: Path) -> str:
    """The server, which has the run at s3://models/team/x."""
    client(s3).create_bucket(Bucket="models")
    store = CheckpointStore(run / "checkpoints")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        stored = StoredRun(Bucket("s3://models/team/x", endpoint_url=s3))
        stored.push({step: store.path(step) for step in store.steps()}, run_files(run))
    return s3


@pytest.fixture
def proxy(store_with_run: str, credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    monkeypatch.chdir(tmp_path)
    with proxied(store_with_run) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.address)
        yield found


def fetched(proxy: S3Proxy) -> list[str]:
    """The model files that were asked for."""
    return [request.path for request in proxy.seen if request.method == "GET" and "model.safetensors" in request.path]


@pytest.mark.parametrize(
    ("address", "checkpoint", "step"),
    [
        ("s3://models/team/x", "best", 2),
        ("s3://models/team/x/", "latest", 3),
        ("s3://models/team/x", 1, 1),
        ("s3://models/team/x/checkpoints/step-000001", "best", 1),
        ("s3://models/team/x/checkpoints/latest", "best", 3),
    ],
)
def test_an_address_stands_where_a_run_directory_does(
    address: str, checkpoint: int | str, step: int, proxy: S3Proxy, run: Path
) -> None:
    here = Path(locate(address, checkpoint))  # type: ignore[arg-type]
    theirs = CheckpointStore(run / "checkpoints").path(step)
    assert here == Path(".cache/s3/models/team/x/checkpoints") / theirs.name
    assert (here / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert not (here / "trainer_state").exists()
    assert not any("trainer_state" in request.path for request in proxy.seen)
    # It is a checkpoint like any other, which cannot be resumed; where it is from is known too.
    store = CheckpointStore(here.parent)
    store.verify(step, hashes=True)
    with pytest.raises(CheckpointError, match="cannot be resumed, only loaded as a model"):
        store.load_state(step)
    origin = provenance(str(here))
    assert (origin.step, origin.program, origin.chain) == (step, "train_grpo.py", ("x", "s3://elsewhere/base"))
    assert len(fetched(proxy)) == 1
    assert locate(address, checkpoint) == str(here)  # type: ignore[arg-type]
    assert len(fetched(proxy)) == 1


def test_a_directory_of_model_files_is_fetched_whole_and_again_when_it_changed(proxy: S3Proxy, tmp_path: Path) -> None:
    def write(weights: bytes) -> None:
        for name, content in (("config.json", b"{}"), ("model.safetensors", weights)):
            client(proxy.server).put_object(Bucket="models", Key=f"exported/{name}", Body=content)

    write(b"one")
    here = fetch("s3://models/exported", tmp_path / "into")
    assert (here / "model.safetensors").read_bytes() == b"one"
    fetch("s3://models/exported", tmp_path / "into")
    assert len(fetched(proxy)) == 1
    write(b"two")
    assert (fetch("s3://models/exported", tmp_path / "into") / "model.safetensors").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://models/nothing", "holds neither a run with checkpoints nor a model"),
        ("s3://models/team/x/checkpoints/step-000009", r"has no complete checkpoint of step 9; it has 1, 2, 3"),
        ("s3://models/team/x/checkpoints/newest", r"is no checkpoint; write s3://models/team/x, or"),
        ("s3://no-such-bucket/x", "there is no bucket 'no-such-bucket'"),
    ],
)
def test_an_address_where_no_model_is_is_one_sentence(address: str, sentence: str, proxy: S3Proxy) -> None:
    with pytest.raises(StorageError, match=sentence):
        locate(address)


def test_a_checkpoint_that_lost_a_file_is_none(proxy: S3Proxy, run: Path) -> None:
    stored = StoredRun(Bucket("s3://models/team/y"))
    stored.push({1: run / "checkpoints" / "step-000001", 2: run / "checkpoints" / "step-000002"}, [])
    stored.bucket.delete(["checkpoints/step-000002/model.safetensors"])
    assert sorted(stored.manifests()) == [1]
