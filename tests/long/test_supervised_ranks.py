"""SFT on two ranks survives a stop and the death of a worker, and not a bit of its weights is another for it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.actors.small import write_model
from tests.training.test_supervised import STEPS, column, events, sft, weights
from troupe.actors.placement import Cluster
from troupe.algorithms.packing import Batch
from troupe.jobs.train_sft import SFTTask, train_sft
from troupe.records import Group
from troupe.runs.checkpoint import CheckpointStore
from troupe.training.supervised import SupervisedContext, train_supervised

STOPPED_AT, KILLED_IN = 2, 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file lie, and the model that they start from."""
    path = tmp_path_factory.mktemp("ranks")
    write_model(path / "model", tied=True)
    return path


class Struck(SFTTask):
    """SFT in which the process of rank 1 is killed in a step, once."""

    struck = False

    def prepare(self, batch: Batch, groups: Sequence[Group], training: SupervisedContext) -> Batch:
        run = training.run
        if not self.struck and run.step == KILLED_IN:
            import ray

            self.struck = True
            asked = training.model.workers.handles[1].__ray_call__.remote(lambda worker: os.getpid())  # type: ignore[attr-defined]
            os.kill(ray.get(asked), signal.SIGKILL)
        return super().prepare(batch, groups, training)


@pytest.fixture(scope="module")
def sft_runs(directory: Path, cluster: Cluster) -> tuple[Path, Path]:
    """(a run of six steps in one go, one that ended after two, was continued, and lost a worker in its last step)."""
    train_sft(sft(directory, "whole"))
    train_sft(sft(directory, "troubled", steps=STOPPED_AT))
    config = sft(directory, "troubled")
    train_supervised(config, Struck(config))
    return directory / "whole", directory / "troubled"


def test_a_stopped_run_that_also_lost_a_worker_ends_with_the_same_weights_to_the_bit(
    sft_runs: tuple[Path, Path],
) -> None:
    whole, troubled = (weights(run, STEPS) for run in sft_runs)
    assert whole.keys() == troubled.keys()
    assert [name for name in whole if not torch.equal(whole[name], troubled[name])] == []
    # Not because nothing was learned:
    assert any(not torch.equal(value, weights(sft_runs[0], 2)[name]) for name, value in whole.items())


def test_a_workers_death_costs_the_steps_since_the_last_checkpoint(sft_runs: tuple[Path, Path]) -> None:
    kinds = [(event["kind"], event["step"]) for event in events(sft_runs[1])]
    # It died in step 6; steps 5 and 6 were made (again) from the checkpoint of step 4.
    assert kinds == [
        ("opened", 0),
        ("finished", STOPPED_AT),
        ("opened", 0),
        ("resumed", STOPPED_AT),
        ("restarted", KILLED_IN),
        ("resumed", 4),
        ("finished", STEPS),
    ]
    (restarted,) = [event for event in events(sft_runs[1]) if event["kind"] == "restarted"]
    assert "WorkerError: policy rank 1 died" in restarted["error"]
    assert json.loads((sft_runs[1] / "status.json").read_text())["state"] == "finished"


def test_the_metrics_have_one_line_per_step_and_say_the_same_as_those_of_the_undisturbed_run(
    sft_runs: tuple[Path, Path],
) -> None:
    whole, troubled = sft_runs
    assert column(troubled, "step") == column(whole, "step") == list(range(STEPS + 1))
    for name in ("sft/nll", "sft/loss", "sft/grad_norm", "data/tokens"):
        assert column(troubled, name) == column(whole, name)
    nll = column(whole, "eval/word_problems/nll")
    assert nll[-1] < nll[0]
    # The best checkpoint is that of the lowest held-out loss.
    assert CheckpointStore(whole / "checkpoints").best() == STEPS
