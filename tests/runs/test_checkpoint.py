"""A checkpoint is whole or does not exist."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from troupe.errors import CheckpointError
from troupe.files import sha256_of
from troupe.runs import checkpoint
from troupe.runs.checkpoint import CheckpointStore, model_identity, save_state
from troupe.runs.model_paths import locate

QWEN = {
    "model_type": "qwen2",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 512,
    "transformers_version": "5.0",
}


def save(store: CheckpointStore, step: int, **state) -> None:
    with store.writing(step, {"model": model_identity(QWEN, 512)}) as path:
        (path / "weights").mkdir()
        (path / "weights" / "rank0.bin").write_bytes(os.urandom(1000))
        save_state(path, {"step": step, **state})


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir() if path.is_dir() and not path.is_symlink())


def test_what_was_saved_is_loaded_and_every_file_is_in_the_manifest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 10, data={"epoch": 1, "position": 64}, best=0.1 + 0.2)
    assert store.latest() == 10
    assert store.load_state(10) == {"step": 10, "data": {"epoch": 1, "position": 64}, "best": 0.1 + 0.2}
    assert set(store.manifest(10)["files"]) == {"weights/rank0.bin", "state.json"}
    store.verify(10, hashes=True)


def test_a_block_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)

    def interrupted() -> None:
        with store.writing(1) as path:
            (path / "half.bin").write_bytes(b"x")
            raise TimeoutError("a rank did not answer")

    with pytest.raises(TimeoutError):
        interrupted()
    assert (store.latest(), names(store)) == (None, [])


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from troupe.runs.checkpoint import CheckpointStore
with CheckpointStore(Path(sys.argv[1])).writing(2) as path:
    (path / "model.bin").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_never_leaves_a_checkpoint_that_latest_returns(tmp_path: Path, start_python) -> None:
    events = []
    store = CheckpointStore(tmp_path, on_event=lambda kind, **fields: events.append(kind))
    save(store, 1)
    start_python(KILLED_WRITER, str(tmp_path)).wait(timeout=30)
    assert names(store) == [".writing-step-000002", "step-000001"]
    assert store.latest() == 1
    save(store, 2)
    assert names(store) == ["step-000001", "step-000002"]
    assert events == ["checkpoint_leftover_removed"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: (path / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda path: (path / "manifest.json").write_text('{"step": 2, "fil'), "no readable manifest.json"),
        (lambda path: (path / "manifest.json").write_bytes(b"\x80\x04\xff\xfe"), "no readable manifest.json"),
        (lambda path: (path / "manifest.json").write_text("[1, 2]"), "no readable manifest.json"),
        (
            lambda path: (path / "manifest.json").write_text('{"step": 2, "files": {"state.json": 7}}'),
            "no readable manifest.json",
        ),
        (lambda path: (path / "weights" / "rank0.bin").unlink(), "weights/rank0.bin is missing"),
        (lambda path: (path / "weights" / "rank0.bin").write_bytes(b"short"), "has 5 bytes, the manifest says 1000"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_an_event_and_named_when_asked_for(
    tmp_path: Path, damage, problem: str
) -> None:
    events = []
    store = CheckpointStore(tmp_path, on_event=lambda kind, **fields: events.append((kind, fields["path"])))
    save(store, 1)
    save(store, 2)
    damage(store.path(2))
    assert store.latest() == 1
    assert store.latest() == 1
    assert events == [("checkpoint_ignored", "step-000002")]
    with pytest.raises(CheckpointError, match=problem):
        store.load_state(2)


def test_a_flipped_byte_is_found_by_its_hash(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    file = store.path(1) / "weights" / "rank0.bin"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    store.verify(1)
    with pytest.raises(CheckpointError, match=r"rank0\.bin has another SHA-256"):
        store.verify(1, hashes=True)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_in_place_of_a_damaged_checkpoint_readers_get_the_next_one_and_its_name_is_told(tmp_path: Path) -> None:
    events = []
    store = CheckpointStore(
        tmp_path / "checkpoints",
        keep_last=3,
        on_event=lambda kind, **fields: events.append((kind, fields["path"], fields["reason"])),
    )
    for step, accuracy in [(1, 0.2), (2, 0.9), (3, 0.5)]:
        store.record_metric(step, accuracy)
        save(store, step)
    assert (store.choose("best"), store.choose("latest")) == (2, 3)
    flip_a_byte(store.path(2) / "weights" / "rank0.bin")
    assert (store.choose("best"), store.choose("latest")) == (3, 3)
    assert events == [
        ("checkpoint_ignored", "step-000002", "weights/rank0.bin has another SHA-256 than the manifest says")
    ]
    with pytest.raises(CheckpointError, match=r"step-000002: weights/rank0\.bin has another SHA-256"):
        store.choose(2)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 7; it has 1, 2, 3"):
        store.choose(7)
    assert Path(locate(str(tmp_path))).name == "step-000003"
    with pytest.raises(CheckpointError, match=r"step-000002 is damaged: weights/rank0\.bin"):
        locate(str(store.path(2)))
    with pytest.raises(CheckpointError, match=r"step-000002 is damaged: weights/rank0\.bin"):
        locate(str(store.path(2) / "weights"))


def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_the_damaged_one_is_renamed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.resumable() is None
    save(store, 1)
    save(store, 2)
    flip_a_byte(store.path(2) / "state.json")
    assert store.resumable() == 1
    assert names(store) == ["damaged-step-000002", "step-000001"]
    assert os.readlink(tmp_path / "latest") == "step-000001"
    flip_a_byte(store.path(1) / "weights" / "rank0.bin")
    with pytest.raises(CheckpointError, match=r"step-000001: weights/rank0\.bin .* run\.resume=never"):
        store.resumable()
    (store.path(1) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* is complete \(step-000001"):
        store.require_some()


@pytest.mark.parametrize("state", ["[1]", '{"step": 1}', '{"position": "ten"}', "\x00"])
def test_a_state_of_another_type_is_one_sentence(tmp_path: Path, state: str) -> None:
    store = CheckpointStore(tmp_path)
    with store.writing(1) as path:
        (path / "state.json").write_text(state)
    with pytest.raises(CheckpointError, match=r"has no state\.json|state\.json says position="):
        store.load_state(1, position=int)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"metrics": {"1": 0.5}}', '{"higher_is_better": true, "metrics": 3}', "\x00"]
)
def test_an_index_without_a_key_counts_as_nothing_measured(tmp_path: Path, index: str) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (tmp_path / "index.json").write_text(index)
    assert (store.best(), store.choose("best")) == (None, 1)
    store.record_metric(1, 0.5)
    assert store.best() == 1


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step, accuracy in [(1, 0.2), (2, 0.9), (3, 0.5), (4, 0.6), (5, 0.9)]:
        store.record_metric(step, accuracy)
        save(store, step)
    assert names(store) == ["step-000002", "step-000004", "step-000005"]
    assert (store.latest(), store.best()) == (5, 2)
    assert [os.readlink(tmp_path / link) for link in ("latest", "best")] == ["step-000005", "step-000002"]


def test_the_best_may_be_measured_after_it_was_saved_and_be_the_lowest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    for step, loss in [(1, 2.0), (2, 1.0), (3, float("nan")), (4, 1.5)]:
        save(store, step)
        store.record_metric(step, loss, higher_is_better=False)
    assert (store.best(), store.steps()) == (2, [2, 4])
    assert CheckpointStore(tmp_path).best() == 2


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1, attempt=1)
    save(store, 1, attempt=2)
    assert (store.load_state(1)["attempt"], names(store)) == (2, ["step-000001"])


def test_a_checkpoint_of_another_model_is_refused_by_naming_both(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    store.verify(1, model=model_identity(QWEN, 512))
    other = model_identity({**QWEN, "hidden_size": 256}, 512)
    with pytest.raises(CheckpointError, match=rf"holds the model qwen2-h128-l4-v512-t512-\w+, this run trains {other}"):
        store.verify(1, model=other)


def test_the_identity_of_a_model_is_its_architecture_and_tokenizer_not_its_library_version() -> None:
    identity = model_identity(QWEN, 512)
    assert model_identity({**QWEN, "transformers_version": "6.0", "torch_dtype": "bfloat16"}, 512) == identity
    assert model_identity({**QWEN, "num_attention_heads": 4}, 512) != identity
    assert model_identity(QWEN, 513) != identity


def test_a_disk_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    def full(step: int) -> None:
        with CheckpointStore(tmp_path).writing(step):
            raise OSError(28, "No space left on device")

    with pytest.raises(
        CheckpointError, match=r"step 3 cannot be written to .*step-000003: No space left on device; .* are free there"
    ):
        full(3)


def test_what_is_written_in_the_background_is_there_for_whoever_asks_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()

    def slow(file: Path) -> str:
        assert may_go_on.wait(20)
        return sha256_of(file)

    monkeypatch.setattr(checkpoint, "sha256_of", slow)
    store = CheckpointStore(tmp_path, in_background=True)
    with store.writing(1) as path:
        (path / "weights").write_bytes(b"1" * 1000)
    assert CheckpointStore(tmp_path).latest() is None, "other processes see it when it is whole"
    may_go_on.set()
    assert store.latest() == 1
    store.verify(1, hashes=True)


def test_a_disk_that_fills_in_the_background_is_told_with_the_next_question_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, in_background=True)
    with store.writing(1) as path:
        (path / "weights").write_bytes(b"1")
    store.settle()

    def full(file: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "sha256_of", full)
    with store.writing(2) as path:
        (path / "weights").write_bytes(b"2")
    with pytest.raises(CheckpointError, match="the checkpoint of step 2 cannot be written"):
        store.latest()
    assert store.latest() == 1
    assert not list(tmp_path.glob(".writing-*"))
