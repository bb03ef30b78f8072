"""One run under faults: started, disturbed, started again where its driver died, and compared with an undisturbed one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.actors.small import write_model
from tests.chaos.faults import MARK, Fault, marked, strike
from tests.disks import mount, unmount
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import dump_config
from troupe.files import read_json, read_lines

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0
RECOVERY_S = 240.0
"""Longest that a run may take from a fault to its next step."""
LEFTOVERS = ("/tmp", "/dev/shm")
NOTICED = ("recovered", "restarted", "resumed", "waited_for_room")
DISK = "64m"


def config_of(directory: Path, name: str, *, steps: int, ranks: int = 1, zero_stage: int = 3) -> GRPOConfig:
    """A small run with every role that one machine holds, and short deadlines."""
    return GRPOConfig(
        steps=steps,
        run={"name": name, "directory": str(directory), "max_restarts": 3, "watch": {"timeline_steps": []}},
        model={"type": "pretrained", "path": str(directory / "model")},
        data={"type": "word_problems", "num_train": 100, "num_heldout": 4},
        rewards=[{"fn": "tests.light_rewards:unhurried_variety", "name": "variety"}],
        rollout={"prompts_per_step": 4, "group_size": 4, "max_prompt_tokens": 100, "max_response_tokens": 12, "timeout_s": DEADLINE_S},
        algorithm={"minibatches": 2, "kl": {"coef": 0.05, "estimator": "k3", "placement": "loss"}, "old_logprobs": "recompute"},
        policy={"precision": "fp32", "learning_rate": 1e-3, "num_ranks": ranks, "zero_stage": zero_stage, "collective_timeout_s": DEADLINE_S},
        generator={"cpu_cache_gib": 0.1, "sync_timeout_s": DEADLINE_S},
        rewarder={"num_workers": 1},
        placement={"call_timeout_s": DEADLINE_S, "reply_timeout_s": 5},
        evaluation={"every": 4, "metrics": [{"fn": "tests.light_rewards:variety"}]},
        checkpoint={"every": 4, "keep_last": 2},
    )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Told:
    """What became of a fault."""

    fault: Fault
    hit: bool = False
    survived: bool = False
    noticed_s: float | None = None
    """Seconds until an event of the run names it; None where Ray mended it and no event does."""
    recovered_s: float = 0.0
    """Seconds until the next step's line."""
    phase: str = ""


@dataclass(slots=True, kw_only=True)
class Result:
    """A run and its faults."""

    name: str
    faults: list[Told] = field(default_factory=list)
    finished: bool = False
    equal: bool = False
    left: list[str] = field(default_factory=list)


class Machine:
    """Runs in one directory, all from one starting model; on a small disk of its own where that may be mounted."""

    def __init__(self, directory: Path, *, own_disk: bool) -> None:
        self.logs, self.directory = directory, directory / "runs"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.has_disk = own_disk and mount(self.directory, DISK)
        write_model(self.directory / "model", tied=True)

    def close(self, *, keep: bool) -> None:
        """Remove the runs, unless they are to be kept, and their disk."""
        if keep:
            return
        if self.has_disk:
            unmount(self.directory)
        shutil.rmtree(self.logs)

    def run(self, name: str, faults: Sequence[Fault], *, steps: int, ranks: int = 1, zero_stage: int = 3) -> Result:
        """Run to the end, whatever happens on the way."""
        config = config_of(self.directory, name, steps=steps, ranks=ranks, zero_stage=zero_stage)
        (self.directory / f"{name}.yaml").write_text(dump_config(config))
        before = {path for folder in LEFTOVERS for path in Path(folder).iterdir()}
        mark = str(self.directory / name)
        result = Result(name=name)
        job = self._start(name, mark)
        try:
            for fault in faults:
                job = self._disturb(job, fault, mark, result)
            result.finished = self._wait_for_end(job, name)
        finally:
            self._end(job)
        time.sleep(1)
        result.left = [f"process {pid}" for pid in marked(mark)]
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        after = {path for folder in LEFTOVERS for path in Path(folder).iterdir()}
        result.left += [str(path) for path in sorted(after - before) if path.name != "ray"]
        return result

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.directory / name / "checkpoints" / "latest" / "model.safetensors")

    def equal(self, name: str, other: str) -> bool:
        try:
            ours, theirs = self.weights(name), self.weights(other)
        except OSError:
            return False
        return all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())

    def _start(self, name: str, mark: str) -> subprocess.Popen[bytes]:
        with open(self.logs / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "jobs/train_grpo.py", str(self.directory / f"{name}.yaml")],
                cwd=ROOT,
                env={**os.environ, MARK: mark},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _disturb(
        self, job: subprocess.Popen[bytes], fault: Fault, mark: str, result: Result
    ) -> subprocess.Popen[bytes]:
        """Wait for its moment, let it happen, wait for the next step; the job, another one where its driver died."""
        run, told = self.directory / result.name, Told(fault=fault)
        result.faults.append(told)
        if not self._wait(lambda: steps_done(run) >= fault.step, RECOVERY_S, job):
            return job
        time.sleep(fault.delay_s)
        events, lines, at = len(read_lines(run / "events.jsonl")), steps_done(run), time.monotonic()
        told.phase = (read_json(run / "status.json") or {}).get("waits_for") or "between waits"
        told.hit = strike(fault, mark, job.pid, self.directory)
        if fault.name == "kill driver":
            job.wait()
            job = self._start(result.name, mark)

        def noticed() -> bool:
            news = read_lines(run / "events.jsonl")[events:]
            if told.noticed_s is None and any(event["kind"] in NOTICED for event in news):
                told.noticed_s = time.monotonic() - at
            return steps_done(run) > lines

        told.survived = self._wait(noticed, RECOVERY_S, job)
        told.recovered_s = time.monotonic() - at
        return job

    def _wait_for_end(self, job: subprocess.Popen[bytes], name: str) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(RECOVERY_S)
        state = (read_json(self.directory / name / "status.json") or {}).get("state")
        return job.poll() == 0 and state == "finished"

    def _wait(self, condition: object, seconds: float, job: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():  # type: ignore[operator]
                return True
            if job.poll() is not None:
                return bool(condition())  # type: ignore[operator]
            time.sleep(0.1)
        return False

    def _end(self, job: subprocess.Popen[bytes]) -> None:
        if job.poll() is None:
            job.kill()
            job.wait()


def steps_done(run: Path) -> int:
    lines = read_lines(run / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else -1
