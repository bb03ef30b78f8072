"""A machine that is lost in the middle of a run: what sat on it is placed elsewhere, or waits for a machine to come.

Not part of `make test`: `make test-cluster` runs it, as root, in namespaces of its own, which end with it. The machine
says nothing as it goes: its cable is cut first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.actors.small import write_model
from tests.cluster.machines import Machine, boot, on
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import dump_config
from troupe.files import read_lines

ROOT = Path(__file__).resolve().parents[2]
RAY = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=test RAY_raylet_start_wait_time_s=300"
STEPS, LOST_AFTER, DEADLINE_S, ENDS_S = 5, 3, 120.0, 600.0


@dataclass(slots=True, kw_only=True)
class Room:
    """Three machines in one Ray cluster, of which the first is its head, and where their runs lie."""

    scratch: Path
    machines: list[Machine]

    @property
    def head(self) -> Machine:
        return self.machines[0]

    def join(self, machine: Machine) -> None:
        """Start Ray on a machine, with one processor: the two bundles of a run take two machines."""
        head = "--head --port=6379 --include-dashboard=false"
        where = head if machine is self.head else f"--address={self.head.address}:6379"
        on(
            machine,
            f"{RAY} {sys.prefix}/bin/ray start {where} --node-ip-address={machine.address} --num-cpus=1 "
            "--object-store-memory=100000000 --disable-usage-stats",
        )

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a run on the head."""
        file = self.scratch / f"{name}.yaml"
        file.write_text(dump_config(recipe(self, name)))
        command = f"cd {ROOT} && {RAY} exec {sys.executable} jobs/train_grpo.py {file}"
        with open(self.scratch / f"{name}.log", "wb") as log:
            return subprocess.Popen(self.head.command(command), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def said(self, name: str) -> str:
        return (self.scratch / f"{name}.log").read_text()

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.scratch / name / "checkpoints" / "latest" / "model.safetensors")


def recipe(room: Room, name: str) -> GRPOConfig:
    """Every role on both bundles: a machine takes a rank of each along."""
    return GRPOConfig(
        steps=STEPS,
        run={"name": name, "directory": str(room.scratch), "watch": {"timeline_steps": []}},
        model={"type": "pretrained", "path": str(room.scratch / "model")},
        data={"type": "word_problems", "num_train": 100, "num_heldout": 4},
        rewards=[{"fn": "tests.light_rewards:unhurried_variety", "name": "variety"}],
        rollout={"prompts_per_step": 4, "group_size": 4, "max_prompt_tokens": 100, "max_response_tokens": 12, "timeout_s": DEADLINE_S},
        algorithm={"minibatches": 2, "kl": {"coef": 0.05, "estimator": "k3", "placement": "loss"}},
        policy={"precision": "fp32", "learning_rate": 1e-3, "num_ranks": 2, "collective_timeout_s": DEADLINE_S},
        reference={"num_ranks": 2},
        generator={"num_engines": 2, "cpu_cache_gib": 0.1, "sync_timeout_s": DEADLINE_S},
        rewarder={"num_workers": 2},
        placement={"mode": "colocated", "address": f"{room.head.address}:6379", "call_timeout_s": DEADLINE_S},
        evaluation={"every": 0, "metrics": [{"fn": "tests.light_rewards:variety"}]},
        checkpoint={"every": 2, "keep_last": 2},
    )  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    if os.getpid() != 1:
        pytest.fail("this needs namespaces of its own: run it with `make test-cluster`")
    scratch = tmp_path_factory.mktemp("room")
    room = Room(scratch=scratch, machines=boot(scratch, 3, ssh=False))
    write_model(scratch / "model", tied=True)
    room.join(room.head)
    with ThreadPoolExecutor() as pool:
        list(pool.map(room.join, room.machines[1:]))
    yield room
    for machine in room.machines:
        machine.process.kill()


def wait(condition: Callable[[], bool], job: subprocess.Popen[bytes], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + ENDS_S
    while not condition():
        assert time.monotonic() < deadline, log()
        assert job.poll() is None, log()
        time.sleep(0.2)


def steps_done(room: Room, name: str) -> int:
    lines = read_lines(room.scratch / name / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else -1


def placed(room: Room, name: str) -> list[str]:
    """The machine of each bundle's policy rank."""
    rows = json.loads((room.scratch / name / "placement.json").read_text())
    return [row["machine"] for row in rows if row["role"] == "policy"]


def test_a_lost_machine_costs_the_steps_since_the_checkpoint_and_no_weight(room: Room) -> None:
    job = room.start("undisturbed")
    assert job.wait(ENDS_S) == 0, room.said("undisturbed")
    job = room.start("disturbed")
    wait(lambda: steps_done(room, "disturbed") >= LOST_AFTER, job, lambda: room.said("disturbed"))
    lost = next(each for each in room.machines[1:] if each.address in placed(room, "disturbed"))
    lost.lose()
    assert job.wait(ENDS_S) == 0, room.said("disturbed")
    assert steps_done(room, "disturbed") == STEPS
    assert f"the machine {lost.address} is lost, and policy" in room.said("disturbed")
    assert lost.address not in placed(room, "disturbed")
    expected, found = room.weights("undisturbed"), room.weights("disturbed")
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
