"""A trainer's state is data: it is read whatever wrote it, and a file that would run code is refused by its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.actors.small import SMALL, ragged, with_targets, write_weights
from tests.actors.test_engine import OBJECTIVE, assert_same_weights, engine, weights_of
from troupe.actors.trainer_state import gathered_state, read_state
from troupe.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_weights(SMALL, tmp_path_factory.mktemp("small"))


class Malicious:
    """What makes a pickle run a command where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_pickle_that_would_run_a_command_is_refused_by_its_name_and_runs_nothing(
    tmp_path: Path, zip_format: bool
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {}, "x": Malicious(marker)}, file, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states\.pt is refused: it asks for posix\.system"):
        read_state(file)
    assert not marker.exists()
    torch.load(file, weights_only=False)  # what DeepSpeed does by itself
    assert marker.exists()


@pytest.mark.parametrize("pattern", ["*model_states.pt", "*optim_states.pt"])
def test_neither_resume_nor_export_run_what_a_checkpoint_brings(model_path: str, tmp_path: Path, pattern: str) -> None:
    with engine(model_path, zero_stage=1) as built:
        built.update(with_targets(ragged()), OBJECTIVE)
        built.save(str(tmp_path))
        (file,) = (tmp_path / "trainer_state").rglob(pattern)
        content = torch.load(file, weights_only=False)
        torch.save({**content, "x": Malicious(tmp_path / "marker")}, file)
        with pytest.raises(CheckpointError, match=f"{file.name} is refused"):
            built.load(str(tmp_path))
    with pytest.raises(CheckpointError, match=f"{file.name} is refused"):
        gathered_state(str(tmp_path))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [[1, 2, 3], {"module": 7}, {"optimizer": {}}, b"\x00" * 64])
def test_a_state_of_another_type_is_one_sentence(model_path: str, tmp_path: Path, content: object) -> None:
    with engine(model_path, zero_stage=1) as built:
        built.save(str(tmp_path))
        (file,) = (tmp_path / "trainer_state").rglob("*model_states.pt")
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(CheckpointError, match=r"model_states\.pt|trainer_state"):
            built.load(str(tmp_path))


@pytest.mark.parametrize(("cluster", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_what_deepspeed_writes_is_read_at_every_stage(
    model_path: str, tmp_path: Path, cluster: int, precision: str
) -> None:
    with engine(model_path, zero_stage=cluster, precision=precision) as first:
        first.update(with_targets(ragged()), OBJECTIVE)
        first.save(str(tmp_path))
        first.update(with_targets(ragged()), OBJECTIVE)
        expected = weights_of(first)
    assert gathered_state(str(tmp_path))
    with engine(model_path, zero_stage=cluster, precision=precision) as second:
        second.load(str(tmp_path))
        second.update(with_targets(ragged()), OBJECTIVE)
        assert_same_weights(weights_of(second), expected)
