"""jobs/launch.py where no cluster is needed: what it refuses, what it makes of a command, how it follows a job."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import troupe.ops.launching
from troupe.jobs import launch
from troupe.ops.launching import Cluster, Jobs
from troupe.processes.subprocesses import run_logged

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ssh and rsync that can be found, and never reach anybody."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in ("ssh", "rsync"):
        (directory / name).write_text("#!/bin/sh\nexit 255\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    monkeypatch.setattr(troupe.ops.launching, "LOGS", tmp_path / "logs")
    return directory


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert launch.main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_dashboard_that_is_not_there_is_one_sentence_on_the_command_line() -> None:
    command = [sys.executable, "jobs/launch.py", "logs", "--address", "http://127.0.0.1:9"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: no Ray dashboard answers at http://127.0.0.1:9: ")
    assert ran.stderr.count("\n") == 1


def test_a_cluster_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "up", "--cluster", "none.yaml") == (
        "error: none.yaml cannot be read: No such file or directory; give --cluster the file that describes your "
        "cluster"
    )


def test_a_file_that_is_no_cluster_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "quickstart.yaml is no cluster file of `ray up`" in refused(
        capsys, "down", "--cluster", str(ROOT / "configs/quickstart.yaml")
    )


def test_what_ray_calls_and_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    said = refused(capsys, "up", "--cluster", str(ROOT / "cluster.yaml"))
    assert "ssh and rsync is not installed; on Debian and Ubuntu: apt install openssh-client rsync" in said


def test_submit_without_a_command_says_how_to_write_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "write it after two dashes: submit -- python jobs/train_grpo.py" in refused(capsys, "submit")


@pytest.mark.parametrize("flag", ["--detach", "--address=http://127.0.0.1:1"])
def test_down_after_run_needs_a_job_that_is_followed_on_a_cluster_of_ours(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert "--down-after-run needs a cluster file" in refused(
        capsys, "submit", "--down-after-run", flag, "--", "python", "x.py"
    )


def test_an_env_file_with_a_quote_missing_is_refused_by_line_and_without_its_value(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=abc\nWANDB_API_KEY='planted-secret\n")
    monkeypatch.setattr(troupe.ops.launching, "ROOT", tmp_path)
    said = refused(capsys, "submit", "--address", "http://127.0.0.1:1", "--", "python", "x.py")
    assert ".env line 2: " in said
    assert "planted" not in said


def test_the_runs_lie_beside_the_project_that_the_cluster_mounts(tmp_path: Path) -> None:
    assert Cluster(ROOT / "cluster.yaml").runs == "/home/ubuntu/runs"
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    cluster["file_mounts"] = {"~/troupe/troupe": "troupe"}  # a path that no job could use as it stands
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    assert Cluster(tmp_path / "cluster.yaml").runs is None


def test_both_files_say_how_many_machines_are_to_come_up() -> None:
    assert Cluster(ROOT / "cluster.yaml").num_machines == 1
    assert Cluster(ROOT / "cluster.local.yaml").num_machines == 3


def test_a_training_job_writes_beside_the_project_unless_it_says_otherwise() -> None:
    command = ["python", "jobs/train_grpo.py", "steps=2"]
    assert launch.with_run_directory(command, "/home/u/runs") == [*command, "run.directory=/home/u/runs"]
    own = [*command, "run.directory=/mnt/runs"]
    assert launch.with_run_directory(own, "/home/u/runs") == own
    assert launch.with_run_directory(["python", "jobs/doctor.py"], "/home/u/runs") == ["python", "jobs/doctor.py"]
    with pytest.raises(launch.ConfigError, match="Add --runs DIRECTORY"):
        launch.with_run_directory(command, None)


class Breaking(Jobs):
    """Jobs of a cluster whose connection breaks after every piece of three that the job says."""

    def __init__(self, *, heals: bool) -> None:
        super().__init__("http://127.0.0.1:9")
        self.heals, self.connections = heals, 0

    @property
    def _client(self) -> Breaking:  # type: ignore[override]
        return self

    async def tail_job_logs(self, job: str):  # type: ignore[no-untyped-def]
        self.connections += 1
        for number in range(min(3, self.connections) if self.heals else 1):
            yield f"line {number}\n"
        if not self.heals or self.connections < 3:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job: str) -> argparse.Namespace:
        ended = self.heals and self.connections >= 3
        return argparse.Namespace(status="SUCCEEDED" if ended else "RUNNING", message="")


@pytest.mark.parametrize("heals", [True, False])
def test_a_broken_connection_is_opened_anew_and_no_line_comes_twice(
    heals: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Breaking(heals=heals)
    monkeypatch.setattr(launch, "Jobs", lambda url: jobs)
    options = argparse.Namespace(address="http://127.0.0.1:9")
    if heals:
        assert launch.follow("job1", options) == 0
        assert capsys.readouterr().out == "line 0\nline 1\nline 2\njob job1: SUCCEEDED\n"
    else:
        with pytest.raises(launch.ClusterError, match="breaks again and again; To follow it"):
            launch.follow("job1", options)
        assert capsys.readouterr().out == "line 0\n"


def test_what_takes_too_long_is_ended_with_everything_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    ended = run_logged(["sh", "-c", "trap '' TERM; sleep 30 & echo begun; wait"], tmp_path / "log", timeout_s=0.5)
    assert ended.timed_out
    assert time.monotonic() - started < 15
    assert ended.tail == ["begun"]
