"""A cluster of three machines from `up` to `down`: started over ssh from cluster.local.yaml, given jobs, trained on.

Not part of `make test`: `make test-cluster` runs it, as root, in namespaces of its own, which end with it. What differs
from a person's cluster: the addresses, and that the environment of this machine is linked instead of installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from tests.actors.small import write_model
from tests.cluster.machines import HOME, Machine, boot, on
from troupe.files import read_lines

ROOT = Path(__file__).resolve().parents[2]
SECRET = "planted-7f3a9c51e2"
SSH_SOCKETS = Path("/tmp")
"""Where Ray keeps the sockets of its ssh connections, whatever TMPDIR says."""
HELPERS_END_S = 120.0
NOT_COPIED = (".git", ".venv", ".env", "runs", ".cache", "__pycache__", ".*_cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where everything happens: the machines, and the project of the person who uses them."""

    scratch: Path
    machines: list[Machine]

    @property
    def project(self) -> Path:
        return self.scratch / "project"

    @property
    def shared(self) -> Path:
        """A directory that all machines see."""
        return self.scratch / "shared"

    def start(self, verb: str, *arguments: str, cluster: str = "cluster.yaml") -> subprocess.Popen[str]:
        """`jobs/launch.py verb` as a person starts it."""
        before, after = (
            (arguments[: arguments.index("--")], arguments[arguments.index("--") :])
            if "--" in arguments
            else (arguments, ())
        )
        command = [sys.executable, "jobs/launch.py", verb, *before, "--cluster", str(self.scratch / cluster), *after]
        own = dict.fromkeys(("HOME", "TMPDIR", "RAY_TMPDIR"), str(self.scratch / "operator"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.Popen(
            command,
            cwd=self.project,
            env={**environment, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def launch(self, verb: str, *arguments: str, cluster: str = "cluster.yaml", status: int = 0) -> str:
        """What it says, when it ended as it should."""
        process = self.start(verb, *arguments, cluster=cluster)
        try:
            said = process.communicate(timeout=300)[0]
        except subprocess.TimeoutExpired:
            process.terminate()
            pytest.fail(f"launch.py {verb} hangs: {process.communicate()[0]}")
        print(f"$ launch.py {verb} {' '.join(arguments)}\n{said}")
        assert process.returncode == status, said
        assert SECRET not in said
        return said


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    if os.getpid() != 1:
        pytest.fail("this needs namespaces of its own: run it with `make test-cluster`")
    sockets = set(SSH_SOCKETS.glob("ray_ssh_*"))
    room = Room(scratch=(scratch := tmp_path_factory.mktemp("room")), machines=boot(scratch, 3))
    shutil.copytree(ROOT, room.project, ignore=shutil.ignore_patterns(*NOT_COPIED))
    (room.project / ".env").write_text(f"PLANTED_TOKEN='{SECRET}'\n")
    (scratch / "operator").mkdir()
    room.shared.mkdir()
    write_cluster(room, "cluster.yaml", "never.yaml")
    yield room
    for machine in room.machines:
        machine.process.kill()
    for left in set(SSH_SOCKETS.glob("ray_ssh_*")) - sockets:
        shutil.rmtree(left)


def write_cluster(room: Room, file: str, unreachable: str) -> None:
    """cluster.local.yaml for these machines; and one whose head is not there."""
    cluster = yaml.safe_load((ROOT / "cluster.local.yaml").read_text())
    addresses = [machine.address for machine in room.machines]
    cluster["provider"].update(head_ip=addresses[0], worker_ips=addresses[1:])
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(room.scratch / "key")}
    cluster["file_mounts"] = {
        there.replace("/home/ubuntu", HOME): here for there, here in cluster["file_mounts"].items()
    }
    cluster["setup_commands"] = [f"ln -sfn {sys.prefix} ~/troupe/.venv"]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        # A processor each: the roles of a small run then need all three machines.
        small = "ray start --num-cpus=1 --object-store-memory=100000000"
        cluster[commands] = [command.replace("ray start", small) for command in cluster[commands]]
    (room.scratch / file).write_text(yaml.safe_dump(cluster))
    cluster["cluster_name"] = "troupe-never"
    cluster["provider"].update(head_ip="10.77.0.99", worker_ips=[])
    cluster.update(min_workers=0, max_workers=0)
    (room.scratch / unreachable).write_text(yaml.safe_dump(cluster))


@pytest.fixture(scope="module")
def cluster(room: Room) -> Room:
    """The room with its cluster up."""
    said = room.launch("up", "--timeout", "240")
    assert "troupe-local is up: 3 machines" in said
    for machine in room.machines:
        assert f"  {machine.address}: 1 CPU, 0 GPU" in said
    return room


def test_a_cluster_that_does_not_come_up_is_one_sentence_in_time(room: Room) -> None:
    started = time.monotonic()
    said = room.launch("up", "--timeout", "15", cluster="never.yaml", status=2)
    assert time.monotonic() - started < 60
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert told[0].startswith("error: the cluster troupe-never did not come up within 15 s; what it had started")
    assert "Traceback" not in said


def test_a_second_up_finds_it_up(cluster: Room) -> None:
    assert "troupe-local is up already: 3 machines" in cluster.launch("up")


def test_the_token_of_env_reaches_every_machine_and_no_log(cluster: Room) -> None:
    """The job's own processes read it; what Ray writes about the job on any machine does not hold it."""
    program = """
import hashlib, ray
from troupe.environment import load_env_file
load_env_file()
ray.init()
def seen():
    import os
    return ray.util.get_node_ip_address(), hashlib.sha256(os.environ["PLANTED_TOKEN"].encode()).hexdigest()
seen = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(seen)
for address, digest in {ray.get(seen.remote()) for _ in range(12)}: print("SEEN", address, digest)
"""
    said = cluster.launch("submit", "--", "python", "-c", program)
    assert "with PLANTED_TOKEN of .env" in said
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    assert any(line.startswith("SEEN") and line.endswith(digest) for line in said.splitlines())
    for machine in cluster.machines:
        found = on(machine, f"grep -rl {SECRET} /tmp/ray/*/logs || true")
        assert found == "", machine.address


def test_roles_on_three_machines_train_and_the_run_comes_home(cluster: Room) -> None:
    write_model(cluster.shared / "model", tied=True)
    said = cluster.launch("submit", "--runs", str(cluster.shared / "runs"), "--", *training(cluster))
    assert "SUCCEEDED" in said
    cluster.launch("fetch", "spread", "--runs", str(cluster.shared / "runs"))
    run = cluster.project / "runs" / "spread"
    placement = json.loads((run / "placement.json").read_text())
    assert [(row["role"], row["rank"]) for row in placement] == [("policy", 0), ("policy", 1), ("generator", 0)]
    assert {row["machine"] for row in placement} == {machine.address for machine in cluster.machines}
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    # The generator on its machine has the weights of the two trainers on theirs.
    assert all(line["consistency/logprob_gap"] < 1e-4 for line in lines)
    assert lines[-1]["policy/grad_norm"] > 0
    assert (run / "checkpoints" / "step-000002" / "model.safetensors").is_file()


def training(room: Room) -> list[str]:
    """Two steps of a model of 300 kB: two ranks of the policy and one generator."""
    return [
        *("python", "jobs/train_grpo.py", "run.name=spread", "steps=2"),
        f"model={{type: pretrained, path: {room.shared / 'model'}}}",
        "data={type: word_problems, num_train: 100, num_heldout: 8}",
        "rewards=[{fn: 'tests.light_rewards:variety'}]",
        "rollout={prompts_per_step: 4, group_size: 4, max_prompt_tokens: 100, max_response_tokens: 12}",
        "algorithm={minibatches: 2}",
        "policy={precision: fp32, num_ranks: 2, learning_rate: 1e-3}",
        "generator.cpu_cache_gib=0.1",
        "placement.mode=separate",
        "evaluation={every: 2, metrics: [{fn: 'tests.light_rewards:variety'}]}",
        "checkpoint.every=1",
    ]


def test_a_run_directory_that_only_the_driver_sees_is_refused(cluster: Room) -> None:
    write_model(cluster.shared / "model", tied=True)
    said = cluster.launch("submit", "--", *training(cluster), "run.directory=/tmp/ray/runs", status=1)
    assert "the run directory /tmp/ray/runs/spread is not the same on 10.77.0." in said
    assert "FAILED" in said


def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(cluster: Room) -> None:
    said = cluster.launch("submit", "--detach", "--", "python", "-uc", "import time; print('begun'); time.sleep(600)")
    job = re.findall(r"^job (\S+):", said, re.MULTILINE)[0]
    following = cluster.start("logs")
    assert following.stdout is not None
    assert "begun\n" in following.stdout  # read up to that line
    following.send_signal(signal.SIGINT)
    rest = following.communicate(timeout=60)[0]
    assert following.returncode == 130
    assert f"the job goes on. To follow it: python jobs/launch.py logs {job}" in rest
    assert f"job {job}: STOPPED" in cluster.launch("stop", job)
    assert "begun" in cluster.launch("logs", job, status=143)


def test_after_the_last_run_the_cluster_is_down_and_leaves_no_process(cluster: Room) -> None:
    said = cluster.launch("submit", "--down-after-run", "--no-fetch", "--", "python", "-c", "print('the last')")
    assert "the last" in said
    said = cluster.launch("logs", status=2)
    assert "python jobs/launch.py up starts the cluster" in said
    # Ray's helpers on the workers notice by themselves that the cluster is gone.
    started = time.monotonic()
    while left := ray_processes():
        assert time.monotonic() - started < HELPERS_END_S, "\n".join(left)
        time.sleep(1)
    print(f"Ray's last process ended {time.monotonic() - started:.0f} s after the cluster was down")


def ray_processes() -> list[str]:
    """Command lines of what Ray has running on the machines; a zombie has ended and has none any more."""
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if "/site-packages/ray/" in line]
