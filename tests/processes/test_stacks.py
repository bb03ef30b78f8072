"""What a process does is read from outside, also of one that is stopped; and all below it ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from troupe.processes.stacks import describe_process, end_processes

PROGRAM = """
import subprocess, sys, time
def stuck_here():
    child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
    time.sleep(600)
stuck_here()
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    yield parent
    end_processes([parent.pid])
    parent.wait()


def test_a_stopped_process_is_described_with_its_stack_and_its_children(family: subprocess.Popen[str]) -> None:
    os.kill(family.pid, signal.SIGSTOP)
    lines = describe_process(family.pid)
    (child,) = psutil.Process(family.pid).children()
    assert lines[0].startswith(f"process {family.pid}, python")
    assert lines[0].endswith("stopped (SIGSTOP):")
    assert any(line.startswith(f"process {child.pid}, python") for line in lines)
    if not any("no stack" in line for line in lines):  # where the system forbids it, the line says so
        assert any("stuck_here" in line for line in lines)


def test_a_process_that_is_gone_is_said_to_be(family: subprocess.Popen[str]) -> None:
    children = psutil.Process(family.pid).children()
    os.kill(family.pid, signal.SIGSTOP)
    end_processes([family.pid])
    family.wait()
    assert describe_process(family.pid) == [f"process {family.pid} is gone"]
    assert psutil.wait_procs(children, 10)[1] == []


def test_a_resource_tracker_is_left_to_clean_up_and_its_siblings_end() -> None:
    source = (
        "import subprocess, sys, time\n"
        "for name in ('resource_' + 'tracker', 'other'):\n"
        "    command = [sys.executable, '-c', 'import time; time.sleep(600)', name]\n"
        "    print(subprocess.Popen(command).pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    tracker, other = (psutil.Process(int(parent.stdout.readline())) for _ in range(2))
    end_processes([parent.pid, 2**22 + 1])  # the second is no process
    parent.wait()
    parent.stdout.close()
    assert psutil.wait_procs([other], 10)[1] == []
    assert tracker.is_running()
    tracker.kill()


def test_what_is_no_python_program_is_described_with_the_reason_for_its_missing_stack() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        lines = describe_process(process.pid)
        process.kill()
    name, reason = lines
    assert name.startswith(f"process {process.pid}, sleep, ")
    assert reason.startswith("  (no stack: ")
