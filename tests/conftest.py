"""What the whole session shares."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.s3 import CREDENTIALS, s3_server
from troupe.actors.placement import Cluster
from troupe.config.grpo import GRPOConfig
from troupe.config.models import PlacementConfig
from troupe.config.run import CheckpointConfig, RunConfig

ROOT = Path(__file__).resolve().parents[1]
# Read when ray is imported, which some test files do before anybody asks for a stage: no Ray leaves loopback.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


class RayTogether(LoadScopeScheduling):
    """Files are dealt out whole; those of a folder that need Ray go to one process, so that each starts Ray once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return f"ray {Path(file).parent}" if needs_ray(file) else file


@functools.cache
def needs_ray(file: str) -> bool:
    text = (ROOT / file).read_text()
    return "cluster: Cluster" in text or 'usefixtures("cluster")' in text


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayTogether:
    """How pytest-xdist deals out the tests."""
    return RayTogether(config, log)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A stage that keeps Ray alive, whose start takes longer than most tests; stages of jobs and tests join it."""
    os.environ.setdefault("RAY_metrics_report_interval_ms", "2000")  # tests need not wait for Ray's ten seconds
    cluster = Cluster(PlacementConfig())
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    with s3_server() as address:
        yield address


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for it, and nothing else that boto3 could find in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """A process group of this process alone, and the environment put back for the modules that follow.

    The group itself stays until the session ends: DeepSpeed keeps groups that belong to it in globals, and no second
    process group would know them.
    """
    from troupe.actors.process_group import join_process_group, prepare_extension
    from troupe.hardware import set_up_process

    before = dict(os.environ)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    set_up_process(master_port=port)
    prepare_extension()
    join_process_group()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., GRPOConfig]:
    """Builds recipes whose runs lie in the test's directory: `recipe(steps=3, resume="never")`."""

    def build(*, name: str = "tiny", resume: str = "auto", trackers: tuple[str, ...] = (), **fields) -> GRPOConfig:
        run = RunConfig(name=name, directory=str(tmp_path), resume=resume, trackers=list(trackers))
        return GRPOConfig(**{"steps": 3, "checkpoint": CheckpointConfig(keep_last=2), **fields, "run": run})

    return build


@pytest.fixture
def start_python():
    """Starts `python -c source` in the repository with pipes; what still runs at the end is killed."""
    started: list[subprocess.Popen] = []

    def start(source: str, *arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", source, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
