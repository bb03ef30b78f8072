"""A run that goes on with other numbers of ranks and engines and at other ZeRO stages is the same run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from tests.actors.small import write_model
from tests.actors.test_values import write_scalar_model
from tests.jobs.test_train_ppo import recipe
from tests.training.test_supervised import column, events, sft, weights
from troupe.actors.placement import Cluster
from troupe.config.grpo import PPOConfig
from troupe.config.supervised import SFTConfig
from troupe.files import read_lines
from troupe.jobs.train_grpo import train
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


# -- policy, critic and engines ----------------------------------------------------------------------------------


def ppo(directory: Path, name: str, *, steps: int, ranks: int, stages: tuple[int, int]) -> Path:
    """A run of policy and critic at these ZeRO stages, on as many ranks and engines."""
    settings = recipe(directory, steps=steps).model_dump()
    settings["run"] |= {"name": name, "samples_per_step": 4}
    settings["checkpoint"] |= {"every": 1, "keep_last": 4}
    for section, stage in zip(("policy", "critic"), stages, strict=True):
        settings[section] |= {"num_ranks": ranks, "zero_stage": stage}
    settings["generator"]["num_engines"] = ranks
    train(PPOConfig.model_validate(settings))
    return directory / name


def texts(run: Path) -> list[list[str]]:
    """Answers of the second step's groups."""
    lines = [line for line in read_lines(run / "rollouts.jsonl") if line["step"] == 2]
    return [[branch["text"] for branch in line["branches"]] for line in lines]


def test_ppo_goes_on_with_two_ranks_of_policy_and_critic_and_two_engines(tmp_path: Path, cluster: Cluster) -> None:
    write_model(tmp_path / "model", tied=True)
    write_model(tmp_path / "reward_model", tied=True, seed=1)
    write_scalar_model(AutoConfig.from_pretrained(tmp_path / "reward_model"), tmp_path / "reward_model", score_mean=0.5)
    whole = ppo(tmp_path, "whole", steps=2, ranks=1, stages=(3, 3))
    go_back(whole, tmp_path / "changed", 1)
    changed = ppo(tmp_path, "changed", steps=2, ranks=2, stages=(2, 1))
    assert len(texts(whole)) == 4
    assert texts(changed) == texts(whole)
    for name in ("policy/loss", "policy/kl", "value/loss", "value/mean", "reward/mean"):
        assert column(changed, name) == pytest.approx(column(whole, name), abs=1e-6), name
