"""A process that died is told by signal or status, with what it did, its last lines and a remedy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from troupe.processes.deaths import (
    describe_death,
    describe_exit,
    find_remedy,
    last_exception,
    last_lines,
    memory_report,
    quote_lines,
    signal_in,
)


def run(tmp_path: Path, code: str, **environment: str) -> tuple[int, list[str], int]:
    """Status, last lines and process number of a real child that runs `code`."""
    log = tmp_path / "child.err"
    with open(log, "wb") as file:
        child = subprocess.Popen([sys.executable, "-c", code], stderr=file, env={**os.environ, **environment})
        status = child.wait()
    return status, last_lines(log), child.pid


def test_a_segmentation_fault_is_named_with_the_childs_own_stack(tmp_path: Path) -> None:
    code = (
        "import ctypes, sys\nprint('working', file=sys.stderr, flush=True)\ndef crash(): ctypes.string_at(0)\ncrash()"
    )
    status, tail, pid = run(tmp_path, code, PYTHONFAULTHANDLER="1")
    text = describe_death("the child", status, doing="it read a string", tail=tail, pid=pid)
    assert text == "the child was ended by SIGSEGV (it touched memory that is not its own) while it read a string"
    assert tail[0] == "working"
    assert any("in crash" in line for line in tail)


def test_an_exit_status_comes_with_the_exception_that_led_to_it(tmp_path: Path) -> None:
    code = "import sys, traceback\ntry: 1/0\nexcept ZeroDivisionError: traceback.print_exc()\nsys.exit(3)"
    status, tail, _ = run(tmp_path, code)
    assert describe_death("the child", status, tail=tail) == (
        "the child ended with exit status 3: ZeroDivisionError: division by zero"
    )


def test_where_nobody_collected_the_status_the_marks_in_its_stderr_tell_the_signal(tmp_path: Path) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)"
    _, tail, _ = run(tmp_path, code, PYTHONFAULTHANDLER="1")
    assert signal_in(tail) == -signal.SIGILL
    text = describe_death("the child", None, tail=tail)
    assert text.startswith("the child was ended by SIGILL (the processor refused an instruction); ")
    assert "make doctor" in text


@pytest.mark.parametrize("status", [None, -signal.SIGKILL])
def test_a_kill_says_what_is_known_of_memory(status: int | None) -> None:
    text = describe_death("policy rank 0", status, doing="it ran `update`")
    assert "killed, most often for memory" in text
    assert "GiB of memory are free now" in text
    assert "while it ran `update`" in text


def test_where_nobody_collected_the_status_an_exception_is_the_cause(tmp_path: Path) -> None:
    _, tail, _ = run(tmp_path, "raise ValueError('no room for the KV cache')")
    assert describe_death("the engine", None, doing="it started", tail=tail) == (
        "the engine ended while it started: ValueError: no room for the KV cache"
    )


def test_every_signal_and_status_has_words() -> None:
    for number in signal.Signals:
        assert describe_exit(-number).startswith(f"was ended by {number.name}")
    assert describe_exit(-63).startswith("was ended by ")
    assert describe_exit(0) == "ended with exit status 0"


def test_the_last_exception_is_found_behind_vllms_prefixes() -> None:
    lines = [
        "(EngineCore pid=12) ERROR 11-30 07:42:29 [core.py:1506] Traceback (most recent call last):",
        "(EngineCore pid=12) ERROR 11-30 07:42:29 [core.py:1506] ValueError: no room for the KV cache",
        "(EngineCore pid=12) Process EngineCore:",
    ]
    assert last_exception(lines) == "ValueError: no room for the KV cache"


def test_last_lines_have_no_secrets_no_escapes_and_no_marks_of_rays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-planted-secret-1")
    log = tmp_path / "worker.err"
    log.write_text(":job_id:01\n\x1b[36mkey sk-planted-secret-1\x1b[0m\n\n" + "x\n" * 3)
    assert last_lines(log) == ["key $SOME_API_KEY", "x", "x", "x"]
    assert last_lines(log, 1) == ["x"]
    assert last_lines(tmp_path / "none") == []


def test_the_lines_begin_with_the_stack_of_the_fault(tmp_path: Path) -> None:
    stack = ["Fatal Python error: Illegal instruction", *(f"  File {depth}" for depth in range(40))]
    log = tmp_path / "worker.err"
    log.write_text("\n".join(["before"] * 30 + stack + ["Extension modules: a, b", ""]))
    assert last_lines(log, 5) == stack[:5]
    assert last_lines(log, 100) == ["before"] * 30 + stack


def test_the_memory_of_this_machine_is_told() -> None:
    assert "GiB of memory are free now" in memory_report()


def test_a_container_that_may_use_less_than_the_machine_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: types.SimpleNamespace(available=3 * 2**30, total=64 * 2**30))
    monkeypatch.setattr("troupe.processes.deaths._cgroup_limit", lambda: 8 * 2**30)
    assert memory_report() == "3.0 of 64.0 GiB of memory are free now, and this container may use 8.0 GiB"
    monkeypatch.setattr("troupe.processes.deaths._cgroup_limit", lambda: 2**63 - 4096)  # none, as cgroup 1 writes it
    assert memory_report() == "3.0 of 64.0 GiB of memory are free now"


@pytest.fixture
def kernel_log(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The other end of what is read in the place of the kernel's log: one message is one record, as there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    real = os.open
    monkeypatch.setattr(
        "troupe.processes.deaths.os.open",
        lambda path, *rest, **named: os.dup(theirs.fileno()) if path == "/dev/kmsg" else real(path, *rest, **named),
    )
    return ours


def test_the_kernels_own_line_on_a_death_is_quoted_and_not_that_on_another(kernel_log: socket.socket) -> None:
    for pid in (4242, 42):
        kernel_log.send(f"6,339,514,-;Out of memory: Killed process {pid} (python) total-vm:9kB\n DEVICE=+x\n".encode())
    text = describe_death("policy rank 0", -signal.SIGKILL, pid=42)
    assert "; the kernel says: Out of memory: Killed process 42 (python) total-vm:9kB; `--dry-run` estimates" in text
    kernel_log.send(b"6,340,515,-;Killed process 4242 (python)\n")
    assert "the kernel says" not in describe_death("policy rank 0", -signal.SIGKILL, pid=42)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "policy.row_tokens"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "policy.row_tokens"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/x'", "--shm-size=8g"),
        ("*** SIGILL received at time=1 on cpu 0 ***", "make doctor"),
        ("*** SIGBUS received at time=1 on cpu 0 ***", "--shm-size=8g"),
        ("ValueError: a length of 7", ""),
    ],
)
def test_a_known_cause_comes_with_its_remedy(line: str, remedy: str) -> None:
    found = find_remedy(["policy rank 0 ended", line])
    assert remedy in found
    assert bool(found) == bool(remedy)


def test_marks_of_native_code_name_the_signal_and_words_that_only_look_like_them_do_not() -> None:
    assert signal_in(["before", "*** SIGSEGV received at time=17 on cpu 1 ***"]) == -signal.SIGSEGV
    assert signal_in(["Fatal Python error: Aborted"]) == -signal.SIGABRT
    assert signal_in(["*** SIGNONE received"]) is None
    assert signal_in(["I was told that SIGSEGV received a medal", "Aborted"]) is None
    assert signal_in([]) is None


def test_an_exception_is_a_line_of_its_own_and_the_last_one_counts() -> None:
    assert last_exception(["ValueError: first", "torch.cuda.OutOfMemoryError: second", "bye"]) == (
        "torch.cuda.OutOfMemoryError: second"
    )
    assert last_exception(["KeyboardInterrupt"]) == "KeyboardInterrupt"
    assert last_exception(["loss: 3", "a ValueError: in a sentence", "  File 'x.py', line 3, in Error"]) == ""


def test_lines_are_quoted_below_a_title_and_nothing_is_quoted_of_nothing() -> None:
    assert quote_lines(["a", "b"], "its last lines:") == "its last lines:\n  | a\n  | b"
    assert quote_lines([], "its last lines:") == ""


def test_only_the_end_of_a_huge_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "worker.err"
    with open(log, "wb") as file:
        file.seek(2**32)  # 4 GiB that take no room
        file.write(b"\nthe end\n")
    assert last_lines(log)[-1] == "the end"
