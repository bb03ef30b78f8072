"""An engine that dies, at its start or in the middle, is an error that a person can read, and never a hang."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.actors.small import write_model
from troupe.actors.generator import GeneratorWorker, Request
from troupe.actors.generators import Generators, generator_arguments, start_generators
from troupe.actors.placement import Cluster
from troupe.config.models import GeneratorConfig
from troupe.config.run import RunConfig
from troupe.errors import WorkerError

CONFIG = GeneratorConfig(cpu_cache_gib=0.1)


class DoomedGenerator(GeneratorWorker):
    """A generator whose engine can be found, and which may die of a signal at its start."""

    def engine_pid(self) -> int:
        return int(self._engine._processes[0].pid)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture
def doomed(cluster: Cluster, model: str, tmp_path: Path) -> Iterator[Generators]:
    """One engine of a run, not started; the run keeps the logs of its processes."""
    arguments = generator_arguments(
        model, CONFIG, max_length=128, precision="fp32", transport="gloo", sleep=False, seed=0
    )
    mine = Cluster(cluster._config, RunConfig(name="doomed", directory=str(tmp_path)))
    generators = Generators(
        mine.workers(DoomedGenerator, arguments, role="generator", max_concurrency=100), CONFIG, sleeps=False
    )
    yield generators
    generators.shutdown()
    mine.close()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGILL, r"was ended by SIGILL \(the processor refused an instruction\)"),
        (signal.SIGKILL, r"was ended by SIGKILL \(killed, most often for memory\)"),
    ],
)
def test_an_engine_that_dies_in_the_middle(
    doomed: Generators, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    start_generators(doomed.workers, CONFIG)
    (pid,) = doomed.workers.call(DoomedGenerator.engine_pid)
    endless = Request(prompt_ids=[5, 6, 7], num_branches=4, max_tokens=120, temperature=1.0, seed=1)
    answers = doomed.submit([endless] * 64)
    os.kill(pid, number)
    with pytest.raises(WorkerError) as death:
        answers[-1].result(60)
    assert re.match(
        rf"generator rank 0's engine \(process {pid}\) {words} while it was sampling 256 answers; ", str(death.value)
    )
    assert "its last lines:" in death.value.details
    log = tmp_path / "doomed" / "logs" / "generator-0-engine.log"
    assert death.value.details.endswith(f"whole log: {log}")
    assert "INFO" in log.read_text()
    # Whatever it is asked afterwards has the same answer, at once.
    with pytest.raises(WorkerError, match=f"process {pid}"):
        doomed.workers.call(GeneratorWorker.receive, 1)
    with pytest.raises(WorkerError, match=f"process {pid}"):
        doomed.logprobs(0, [[1, 2, 3]]).result(60)


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGKILL])
def test_an_engine_that_dies_at_its_start(doomed: Generators, number: signal.Signals) -> None:
    threading.Thread(target=lambda: os.kill(wait_for_child().pid, number)).start()
    words = (
        rf"generator rank 0's engine (was ended by|is gone without a last word, as after) {number.name} .*it started"
    )
    with pytest.raises(WorkerError, match=words) as death:
        start_generators(doomed.workers, CONFIG)
    assert "its last lines:" in death.value.details or number == signal.SIGKILL


def wait_for_child() -> psutil.Process:
    """The process of a DoomedGenerator's engine, as soon as there is one."""
    while True:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                parent = process.parent()
                is_engine = "spawn_main" in " ".join(process.cmdline())
                if is_engine and parent is not None and "DoomedGenerator" in " ".join(parent.cmdline()):
                    return process
        time.sleep(0.05)
