"""An engine's process: every call ends with it, with a sentence that says how it died and what it did.

The processes are real children of this one; what is missing is vLLM in them, which tests/long/test_engine_death.py
has.
"""

from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from troupe.engines.process import EngineProcess, output_to, own_log_path
from troupe.errors import WorkerError

FORK = multiprocessing.get_context("fork")


def live() -> None:
    """Be a process for a minute, whose death prints nothing."""
    faulthandler.disable()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(60)


def end(status: int) -> None:
    """Be a process that ends by itself."""
    os._exit(status)


@pytest.fixture
def child() -> Iterator[BaseProcess]:
    """A process that would live for a minute."""
    process = FORK.Process(target=live)
    process.start()
    yield process
    process.kill()
    process.join()


def watched(*processes: BaseProcess, log: Path | None = None) -> EngineProcess:
    """An engine made of these processes; call it on the running event loop."""
    engine = EngineProcess("generator rank 0's engine")
    if log is not None:
        engine.log = log
    engine.watch(processes)
    return engine


def death_of(
    process: BaseProcess, number: int, use: Callable[[EngineProcess], Awaitable[Any]], log: Path | None = None
) -> WorkerError:
    """What `use` of an engine ends with when a signal ends its process while it waits."""

    async def scene() -> None:
        engine = watched(process, log=log)
        asyncio.get_running_loop().call_later(0.05, os.kill, process.pid, number)
        await use(engine)

    with pytest.raises(WorkerError) as death:
        asyncio.run(asyncio.wait_for(scene(), 30))
    return death.value


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_call_returns_what_it_returns_while_the_engine_lives(child: BaseProcess) -> None:
    async def scene() -> tuple[int, bool]:
        engine = watched(child)
        return await engine.run("adding", asyncio.sleep(0, result=42)), engine.is_dead

    assert asyncio.run(scene()) == (42, False)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"was ended by SIGKILL \(killed, most often for memory\)"),
        (signal.SIGILL, r"was ended by SIGILL \(the processor refused an instruction\)"),
        (signal.SIGSEGV, r"was ended by SIGSEGV \(it touched memory that is not its own\)"),
    ],
)
def test_a_call_that_waits_ends_with_the_engines_signal_and_what_it_did(
    child: BaseProcess, number: signal.Signals, words: str
) -> None:
    death = death_of(child, number, lambda engine: engine.run("sampling 64 answers", forever()))
    assert re.match(
        rf"generator rank 0's engine \(process {child.pid}\) {words} while it was sampling 64 answers", str(death)
    )


def test_all_calls_end_and_the_sentence_names_each_work_once(child: BaseProcess) -> None:
    async def several(engine: EngineProcess) -> None:
        calls = [engine.run(doing, forever()) for doing in ("sampling 2 answers", "scoring", "scoring")]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert {str(one) for one in found} == {str(found[0])}
        raise found[0] if isinstance(found[0], BaseException) else AssertionError

    death = death_of(child, signal.SIGTERM, several)
    assert "while it was sampling 2 answers and scoring" in str(death)


def test_whatever_is_asked_afterwards_has_the_same_answer_at_once(child: BaseProcess) -> None:
    async def twice(engine: EngineProcess) -> None:
        with pytest.raises(WorkerError, match="while it was sampling"):
            await engine.run("sampling", forever())
        assert engine.is_dead
        await engine.run("receiving weights", forever())

    # It died while it sampled, not while it received.
    assert "while it was sampling" in str(death_of(child, signal.SIGTERM, twice))


def test_an_engine_that_ends_by_itself_is_told_with_its_status_and_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("INFO loading\nTraceback (most recent call last):\nValueError: no room for 3 heads\n")
    process = FORK.Process(target=end, args=(3,))

    async def scene() -> None:
        process.start()
        await watched(process, log=log).run("loading the model", forever())

    with pytest.raises(WorkerError) as death:
        asyncio.run(asyncio.wait_for(scene(), 30))
    assert re.search(
        r"ended with exit status 3 while it was loading the model: ValueError: no room for 3", str(death.value)
    )
    assert "its last lines:" in death.value.details


def test_an_engine_that_is_stopped_is_ended_after_its_deadline_with_its_stack(child: BaseProcess) -> None:
    async def scene() -> tuple[WorkerError, WorkerError]:
        engine = watched(child)
        await engine.require_reply(asyncio.sleep(0.01), 20)
        os.kill(child.pid or 0, signal.SIGSTOP)
        with pytest.raises(WorkerError) as late:
            await engine.require_reply(forever(), 0.3)
        with pytest.raises(WorkerError) as after:
            await engine.run("sampling", forever())
        return late.value, after.value

    late, after = asyncio.run(asyncio.wait_for(scene(), 30))
    assert str(late) == "generator rank 0's engine gave no sign of life within 0.3 s and is ended"
    assert f"process {child.pid}, " in late.details
    assert "stopped (SIGSTOP)" in late.details
    assert "was ended by SIGKILL" in str(after)
    assert child.exitcode == -signal.SIGKILL


def test_the_first_of_several_processes_that_ends_is_the_one_that_is_named(child: BaseProcess) -> None:
    other = FORK.Process(target=live)
    other.start()

    async def scene() -> None:
        engine = watched(other, child)
        asyncio.get_running_loop().call_later(0.05, os.kill, child.pid, signal.SIGKILL)
        await engine.run("sampling", forever())

    try:
        with pytest.raises(WorkerError, match=rf"\(process {child.pid}\) was ended by SIGKILL"):
            asyncio.run(asyncio.wait_for(scene(), 30))
    finally:
        other.kill()
        other.join()


# -- a start that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -4}",
            r"was ended by SIGILL \(the processor refused an instruction\) while it started",
        ),
        ("Engine core initialization failed. Failed core proc(s): {'EngineCore_0': 1}", "ended with exit status 1"),
        ("Engine core initialization failed. Failed core proc(s): {}", "is gone without a last word, as after SIGKILL"),
        ("max_model_len is 9000", "did not start: ValueError: max_model_len is 9000"),
    ],
)
def test_a_start_that_fails_says_how(said: str, words: str, tmp_path: Path) -> None:
    engine = EngineProcess("the engine of mine")
    engine.log = tmp_path / "none.log"
    assert re.match(f"the engine of mine {words}", str(engine._not_started(ValueError(said))))


def test_a_start_that_fails_shows_what_the_engine_said_itself(tmp_path: Path) -> None:
    engine = EngineProcess("the engine of mine")
    engine.log = tmp_path / "engine.log"
    engine.log.write_text("Fatal Python error: Illegal instruction\n")
    error = engine._not_started(RuntimeError("Engine core initialization failed. Failed core proc(s): {}"))
    assert "was ended by SIGILL" in str(error)
    assert "Illegal instruction" in error.details


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_what_is_printed_meanwhile_goes_to_the_file_and_a_child_keeps_it(tmp_path: Path, capfd: Any) -> None:
    log = tmp_path / "engine.log"
    os.write(1, b"before\n")
    with output_to(log):
        os.write(1, b"inside\n")
        os.system("echo from a child >&2")
        late = subprocess.Popen(["sh", "-c", "sleep 0.2; echo late"])
    os.write(1, b"after\n")
    late.wait()
    assert capfd.readouterr().out == "before\nafter\n"
    assert log.read_text() == "inside\nfrom a child\nlate\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_output_goes_back_where_it_was_also_after_an_error(tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(ValueError, match="x"), output_to(tmp_path / "a.log"):
        raise ValueError("x")
    with output_to(tmp_path / "a.log"):
        os.write(1, b"second\n")
    os.write(1, b"outside\n")
    assert capfd.readouterr().out == "outside\n"
    assert (tmp_path / "a.log").read_text() == "second\n"


def test_the_log_lies_beside_that_of_the_process_or_in_the_temporary_directory(start_python, tmp_path: Path) -> None:
    source = "from troupe.engines.process import EngineProcess; print(EngineProcess('x').log)"
    with open(tmp_path / "generator-0.err", "w") as err:
        found = subprocess.run(
            [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=err, text=True, check=True
        )
    assert found.stdout.strip() == str(tmp_path / "generator-0.engine")
    process = start_python(source)  # its stderr is a pipe
    out, _ = process.communicate(timeout=60)
    assert Path(out.strip()).name.startswith("troupe-")
    assert own_log_path().suffix


PARENT = """
import subprocess, time
from troupe.processes.subprocesses import end_with_us

child = subprocess.Popen(["sleep", "60"])
end_with_us([child.pid])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_an_engine_does_not_outlive_a_worker_that_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)
