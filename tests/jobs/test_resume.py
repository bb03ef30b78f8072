"""A run goes on from what is whole on its disk, and makes up for what the step that was saved still owes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.actors.small import write_model
from tests.disks import small_disk_at
from troupe.actors.trained import TrainedModel
from troupe.config.supervised import SFTConfig
from troupe.errors import CheckpointError, WorkerError
from troupe.files import read_json, read_lines
from troupe.jobs.train_sft import train_sft

UNEQUAL = ("at", "wall_s", "tokens_per_second", "data/left_out")
"""Of a line of metrics.jsonl: what depends on the clock, or counts what this process has met."""

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume")
    write_model(path / "model", tied=True)
    return path


def sft(directory: Path, name: str, *, steps: int) -> SFTConfig:
    return SFTConfig(
        steps=steps,
        batch_size=4,
        max_length=64,
        run={"name": name, "directory": str(directory)},
        model={"type": "pretrained", "path": str(directory / "model")},
        data={"type": "word_problems", "num_train": 40, "num_heldout": 8},
        engine={"precision": "fp32", "zero_stage": 1, "learning_rate": 3e-3, "schedule": "constant"},
        evaluation={"every": 2},
        checkpoint={"every": 1, "keep_last": 3, "in_background": False},
        placement={"backend": "inline"},
    )


@pytest.fixture(scope="module")
def uninterrupted(directory: Path) -> Path:
    train_sft(sft(directory, "whole", steps=4))
    return directory / "whole"


@pytest.fixture(scope="module")
def halfway(directory: Path) -> Path:
    train_sft(sft(directory, "halfway", steps=3))
    return directory / "halfway"


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def assert_equal_weights(run: Path, other: Path, step: int = 4) -> None:
    assert all(torch.equal(tensor, weights(other, step)[name]) for name, tensor in weights(run, step).items())


@pytest.mark.parametrize("pattern", ["*optim_states.pt", "*model_states.pt", "model.safetensors", "state.json"])
def test_one_flipped_byte_costs_a_step_and_not_the_run(
    directory: Path, halfway: Path, uninterrupted: Path, pattern: str
) -> None:
    run = directory / pattern.strip("*")
    shutil.copytree(halfway, run, symlinks=True)
    (file,) = (run / "checkpoints" / "step-000003").rglob(pattern)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    shutil.copy(halfway / "config.yaml", run)
    train_sft(sft(directory, run.name, steps=4))
    assert_equal_weights(run, uninterrupted)
    told = [event for event in read_lines(run / "events.jsonl") if event["kind"] == "checkpoint_ignored"]
    assert [(event["path"], file.name in event["reason"]) for event in told] == [("step-000003", True)]
    assert (run / "checkpoints" / "damaged-step-000003").is_dir()
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_a_death_after_the_checkpoint_costs_neither_line_nor_evaluation_nor_best(
    directory: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, died = TrainedModel.evaluate_loss, []

    def evaluate_loss(self: TrainedModel, *arguments, **options):
        saved = sorted(path.name for path in (directory / "owing" / "checkpoints").glob("step-*"))
        if saved and saved[-1] in ("step-000002", "step-000004") and saved[-1] not in died:
            died.append(saved[-1])
            raise WorkerError("policy rank 0 died")
        return measured(self, *arguments, **options)

    monkeypatch.setattr(TrainedModel, "evaluate_loss", evaluate_loss)
    train_sft(sft(directory, "owing", steps=4))
    run = directory / "owing"
    assert died == ["step-000002", "step-000004"]
    lines, expected = (read_lines(each / "metrics.jsonl") for each in (run, uninterrupted))
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]

    def figures(line: dict) -> dict:
        return {name: value for name, value in line.items() if "time/" not in name and name not in UNEQUAL}

    assert [figures(line) for line in lines] == [figures(line) for line in expected]
    assert all(line["time/step_s"] > line["time/update_s"] > 0 for line in lines[1:])
    assert (run / "checkpoints" / "index.json").read_text() == (
        uninterrupted / "checkpoints" / "index.json"
    ).read_text()
    assert (run / "checkpoints" / "best").readlink() == (uninterrupted / "checkpoints" / "best").readlink()
    assert_equal_weights(run, uninterrupted)


def test_a_run_goes_on_with_other_batches_another_rate_and_another_stage(directory: Path, halfway: Path) -> None:
    run = directory / "changed"
    shutil.copytree(halfway, run, symlinks=True)
    config = sft(directory, "changed", steps=5).model_dump()
    config["engine"] |= {"zero_stage": 3, "learning_rate": 1e-3}
    train_sft(SFTConfig.model_validate(config | {"batch_size": 8}))
    lines = read_lines(run / "metrics.jsonl")
    assert [line["sft/learning_rate"] for line in lines[1:]] == [3e-3, 3e-3, 3e-3, 1e-3, 1e-3]
    # Three batches of four, then two of eight, and what each process has passed over as too long.
    passed_over = lines[3]["data/left_out"] + lines[5]["data/left_out"]
    state = read_json(run / "checkpoints" / "step-000005" / "state.json")
    assert (state["position"], state["samples"]) == (3 * 4 + 2 * 8 + passed_over, 40)
    assert lines[5]["eval/word_problems/nll"] < lines[0]["eval/word_problems/nll"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    with small_disk_at(tmp_path / "disk", "16m") as disk:
        yield disk


def test_a_full_disk_is_one_sentence_and_the_earlier_checkpoint_stays(
    directory: Path, halfway: Path, small_disk: Path
) -> None:
    run = small_disk / "full"
    shutil.copytree(halfway, run, symlinks=True)
    for step in (1, 2):
        shutil.rmtree(run / "checkpoints" / f"step-{step:06d}", ignore_errors=True)
    config = sft(directory, "full", steps=4)
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"directory": str(small_disk), "wait_for_room_s": 0.0})}
    )
    size = sum(file.stat().st_size for file in (run / "checkpoints" / "step-000003").rglob("*"))
    before = contents(run / "checkpoints" / "step-000003")
    # So much of it fits: a part of the safetensors, of torch's file of the model, of the optimizer's.
    for share in (0.1, 0.45, 0.75):
        filler = small_disk / "filler"
        filler.write_bytes(b"")
        filler.write_bytes(b"x" * int(shutil.disk_usage(small_disk).free - share * size))
        with pytest.raises(CheckpointError) as raised:
            train_sft(config)
        assert re.search(
            r"^the checkpoint of step 4 cannot be written to .*/full/checkpoints/step-000004: No space left on device; "
            r"it needs about \S+ [KM]iB, and \S+ [KM]?i?B are free there; make room",
            str(raised.value),
        ), str(raised.value)
        assert contents(run / "checkpoints" / "step-000003") == before
        assert not list((run / "checkpoints").glob(".writing-*"))
        assert not (run / "checkpoints" / "step-000004").exists()
    filler.unlink()
    train_sft(config)
    assert (run / "checkpoints" / "step-000004").is_dir()


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}
