"""A run that goes on with another number of ranks and at another ZeRO stage is the same run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.actors.small import write_model
from tests.training.test_supervised import column, events, sft, weights
from troupe.actors.placement import Cluster
from troupe.config.supervised import SFTConfig
from troupe.jobs.train_sft import train_sft
from troupe.runs.checkpoint import CheckpointStore

pytestmark = pytest.mark.usefixtures("one_rank")

STEPS, CHANGED_AT = 10, (3, 6)


def shaped(directory: Path, name: str, *, steps: int, ranks: int, zero_stage: int) -> SFTConfig:
    config = sft(directory, name, steps=steps)
    shape = {"num_ranks": ranks, "zero_stage": zero_stage}
    return SFTConfig.model_validate(
        config.model_dump()
        | {
            "engine": config.engine.model_dump() | shape,
            "checkpoint": {"every": 1, "keep_last": STEPS},
            "placement": {"backend": "inline" if ranks == 1 else "ray"},
        }
    )


def go_back(run: Path, copy: Path, step: int) -> None:
    """Make a copy of a run that stopped after `step`."""
    shutil.copytree(run, copy, symlinks=True)
    store = CheckpointStore(copy / "checkpoints", keep_last=STEPS)
    for later in store.steps():
        if later > step:
            store.remove(later)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> tuple[Path, Path, Path]:
    """(a run on two ranks, the same on one, one that goes from two ranks to one and back to two)."""
    directory = tmp_path_factory.mktemp("shapes")
    write_model(directory / "model", tied=True)
    train_sft(shaped(directory, "two", steps=STEPS, ranks=2, zero_stage=3))
    train_sft(shaped(directory, "one", steps=STEPS, ranks=1, zero_stage=3))
    first, second = CHANGED_AT
    go_back(directory / "two", directory / "changed", first)
    train_sft(shaped(directory, "changed", steps=second, ranks=1, zero_stage=1))
    train_sft(shaped(directory, "changed", steps=STEPS, ranks=2, zero_stage=2))
    return directory / "two", directory / "one", directory / "changed"


def losses(run: Path) -> torch.Tensor:
    """[STEPS]: each before the step's update."""
    return torch.tensor(column(run, "sft/loss"), dtype=torch.float64)


def test_the_first_loss_after_each_change_is_that_of_the_undisturbed_run(runs: Sequence[Path]) -> None:
    two, _, changed = map(losses, runs)
    assert all(abs(changed[step] - two[step]) <= 1e-6 for step in CHANGED_AT)


def test_ten_steps_differ_by_no_more_than_twice_what_the_number_of_ranks_makes(runs: Sequence[Path]) -> None:
    two, one, changed = map(losses, runs)
    assert column(runs[2], "data/tokens") == column(runs[0], "data/tokens") == column(runs[1], "data/tokens")
    assert 0 < (changed - two).abs().max() <= 2 * (one - two).abs().max()
    ended = [torch.cat([tensor.flatten() for tensor in weights(run, STEPS).values()]) for run in runs]
    assert (ended[2] - ended[0]).norm() <= 2 * (ended[1] - ended[0]).norm()


def test_what_changed_is_in_the_events(runs: Sequence[Path]) -> None:
    opened = [event["changed"] for event in events(runs[2]) if event["kind"] == "opened"]
    assert opened[1:] == [
        ["engine.num_ranks 2 -> 1", "engine.zero_stage 3 -> 1", 'placement.backend "ray" -> "inline"', "steps 10 -> 6"],
        ["engine.num_ranks 1 -> 2", "engine.zero_stage 1 -> 2", 'placement.backend "inline" -> "ray"', "steps 6 -> 10"],
    ]
