"""A program that nobody has read, run in a child process: bounded time, memory and files, and no network.

Where the system gives namespaces (Linux; also to users, unless it forbids that) the program sees no network, and of the
disk it can write one temporary directory alone. `isolation()` names what this machine lacks; limits of time, memory and
file sizes hold everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from troupe.hardware import hardware

LAUNCHER = [sys.executable, "-I", "-S", str(Path(__file__).with_name("sandbox_launcher.py"))]
GRACE_S = 5.0
"""Seconds beyond a program's own limit, for its start and its end on a busy machine."""
SIGNALLED = 128
"""Exit statuses above it state a signal, as in shells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that a program may take."""

    seconds: float = 10.0
    """Of the clock; of the processor alike."""
    memory_mib: int = 1024
    """Address space of each of its processes."""
    disk_mib: int = 64
    """Its temporary directory; where it has no disk of its own, each file."""
    processes: int = 16
    output_bytes: int = 1 << 20
    """What is read of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a program."""

    status: int | None
    """Its exit status, minus the signal's number where one ended it; None: its time was up."""
    output: str
    """What it printed, errors included."""


def run_python(
    code: str, *, limits: Limits = Limits(), stdin: str = "", files: Mapping[str, str] | None = None
) -> Outcome:
    """Run a Python program with the standard library, in an empty directory beside `files`, texts by their names.

    Example: `run_python("print(6 * 7)").output` is "42\\n". A program that leaves its bounds ends by a signal, or by a
    MemoryError or an OSError of its own.
    """
    with tempfile.TemporaryDirectory(prefix="troupe-sandbox-") as directory, tempfile.TemporaryFile() as output:
        settings = {
            "directory": directory,
            "code": code,
            "files": dict(files or {}),
            "stdin": stdin,
            "seconds": max(1, round(limits.seconds)),
            "memory": limits.memory_mib << 20,
            "disk": limits.disk_mib << 20,
            "processes": limits.processes,
        }
        child = subprocess.Popen(
            LAUNCHER,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": directory, "TMPDIR": directory},
            start_new_session=True,
        )
        status: int | None = None
        try:
            child.communicate(json.dumps(settings).encode(), timeout=limits.seconds + GRACE_S)
            status = child.returncode
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        text = output.read(limits.output_bytes).decode(errors="replace")
    if status is not None and status > SIGNALLED:
        status = SIGNALLED - status
    return Outcome(status=None if status in (-signal.SIGXCPU, -signal.SIGALRM) else status, output=text)


async def run_python_aside(code: str, **options: object) -> Outcome:
    """Run a program as `run_python` does, while the event loop goes on; as many run at once as there are cores."""
    call = functools.partial(run_python, code, **options)  # type: ignore[arg-type]
    return await asyncio.get_running_loop().run_in_executor(_threads(), call)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(hardware().num_cores, thread_name_prefix="sandbox")


@functools.cache
def isolation() -> str:
    """Return what this machine refuses a sandbox, such as "network namespace"; nothing where it has everything."""
    asked = subprocess.run([*LAUNCHER, "--try"], capture_output=True, text=True, check=False, timeout=30)
    return asked.stdout.strip() if asked.returncode == 0 else f"everything ({asked.stderr.strip()[-200:]})"
