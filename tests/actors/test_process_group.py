"""A build of DeepSpeed's extension that was killed keeps nobody waiting."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

BUILDER = """
import sys, time
from torch.utils.file_baton import FileBaton
FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(600)
"""
WAITER = """
import sys
from troupe.actors.process_group import watch_stale_locks
from torch.utils.file_baton import FileBaton
watch_stale_locks()
print("waiting", flush=True)
FileBaton(sys.argv[1]).wait()
"""


def test_torch_waits_for_the_lock_of_a_build_only_while_a_process_holds_it(tmp_path: Path) -> None:
    lock = str(tmp_path / "lock")
    builder, waiter = started(BUILDER, lock), None
    try:
        assert first_line(builder) == "building"
        waiter = started(WAITER, lock)
        assert first_line(waiter) == "waiting"
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        assert waiter.wait(60) == 0
        assert not Path(lock).exists()
    finally:
        for process in (builder, waiter):
            if process is not None:
                process.kill()
                process.wait()


def started(source: str, lock: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", source, lock], stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
