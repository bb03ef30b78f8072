"""A process that died is told by signal or status, with what it did, its last lines and a remedy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from troupe.processes.deaths import describe_death, describe_exit, last_exception, last_lines, memory_report, signal_in


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
