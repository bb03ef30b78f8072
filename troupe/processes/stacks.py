"""What a process that does not answer is doing: its Python stacks, and those of its children, read from outside.

py-spy reads them from the process's memory, so that a process that is stopped, or hangs in C, needs not answer.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from troupe.secrets import page_text

WITHIN_S = 10.0
"""Seconds for the stacks of one process, of which there are several below an engine."""
MOST_LINES = 40


def describe_process(pid: int) -> list[str]:
    """Return lines on a process and those below it: state, name and Python stacks; why there are none where there are
    none.
    """
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return [f"process {pid} is gone"]
    return [line for each in family for line in _describe(each)]


def _describe(process: psutil.Process) -> list[str]:
    try:
        state = "stopped (SIGSTOP)" if process.status() == psutil.STATUS_STOPPED else process.status()
        return [f"process {process.pid}, {process.name()}, {state}:", *python_stacks(process.pid)]
    except psutil.Error:
        return []


def python_stacks(pid: int) -> list[str]:
    """Return the stacks of a process's threads as py-spy shows them, or a line that explains their absence."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return ["  (no stack: py-spy is not installed)"]
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"  (no stack: {type(error).__name__})"]
    if asked.returncode != 0:
        words = (asked.stderr.strip().splitlines() or [""])[-1]
        return [f"  (no stack: the system forbids it, or it is no Python program; py-spy answers: {words[:200]})"]
    lines = [line for line in page_text(asked.stdout).splitlines() if line.startswith((" ", "Thread"))]
    return [f"  {line}" for line in lines[:MOST_LINES]]


def end_processes(pids: Sequence[int]) -> None:
    """End processes and all below them at once, also stopped ones."""
    end_trees([tree_of(pid) for pid in pids])


def tree_of(pid: int) -> list[psutil.Process]:
    """Return a process and all below it; nothing where it is gone."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def end_trees(trees: Sequence[list[psutil.Process]], grace_s: float = 0.0) -> None:
    """End the processes of trees, whose first ones have `grace_s` to end by themselves; Python's resource trackers
    always end by themselves, and remove the shared memory of the others."""
    psutil.wait_procs([tree[0] for tree in trees if tree], timeout=grace_s)
    for process in [process for tree in trees for process in tree]:
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in part for part in process.cmdline()):
                process.kill()
