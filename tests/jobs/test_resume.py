"""A run goes on from what is whole on its disk, and makes up for what the step that was saved still owes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.trained import Trained
from core.errors import WorkerError
from core.files import read_lines
from core.supervised_recipes import SFTConfig
from jobs.train_sft import train_sft
from tests.actors.small import write_model

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
        checkpoint={"every": 1, "keep_last": 3},
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
    measured, died = Trained.measure, []

    def measure(self: Trained, *arguments, **options):
        saved = sorted(path.name for path in (directory / "owing" / "checkpoints").glob("step-*"))
        if saved and saved[-1] in ("step-000002", "step-000004") and saved[-1] not in died:
            died.append(saved[-1])
            raise WorkerError("policy rank 0 died")
        return measured(self, *arguments, **options)

    monkeypatch.setattr(Trained, "measure", measure)
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
