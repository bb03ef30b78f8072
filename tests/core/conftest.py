"""A recipe that is as small as a recipe can be, and a run of it in a temporary directory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.recipes import GRPOConfig
from core.run_recipes import CheckpointConfig, RunConfig

ROOT = Path(__file__).resolve().parents[2]


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
