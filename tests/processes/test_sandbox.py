"""A program in the sandbox computes, and cannot hang, fill memory or disk, reach a network, or write elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from troupe.processes.sandbox import Limits, isolation, run_python, run_python_aside

QUICK = Limits(seconds=2)


def test_a_program_reads_prints_and_ends_by_its_own_status() -> None:
    ended = run_python(
        "import sys\nprint(int(input()) * open('factor.txt').read().count('x'))\nsys.exit(3)",
        stdin="7\n",
        files={"factor.txt": "xxxxxx"},
    )
    assert (ended.status, ended.output) == (3, "42\n")
    failed = run_python("1 / 0")
    assert failed.status == 1
    assert "ZeroDivisionError" in failed.output


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(600)",
    ],
)
def test_time_is_bounded(code: str) -> None:
    assert run_python(code, limits=QUICK).status is None


def test_memory_and_output_are_bounded() -> None:
    assert "MemoryError" in run_python("bytearray(1 << 33)").output
    noisy = run_python("while True: print('x' * 1000)", limits=Limits(seconds=2, disk_mib=4, output_bytes=5000))
    assert len(noisy.output) == 5000
    assert noisy.status != 0


needs_namespaces = pytest.mark.skipif(isolation() != "", reason=f"this machine refuses {isolation()}")


@needs_namespaces
def test_the_disk_is_read_only_but_for_the_own_directory() -> None:
    outside = str(Path(tempfile.gettempdir()) / f"troupe-{os.getpid()}")
    attempt = f"try:\n    open({outside!r}, 'w')\nexcept OSError as error:\n    print(error.strerror)\nopen('mine', 'w').write('1')\nprint(open('mine').read())"
    assert run_python(attempt).output == "Read-only file system\n1\n"
    # Neither may it undo that, as root of a namespace could.
    undo = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.mount(None, b'/', None, 4096 | 32, None), libc.unshare(0x10000000 | 0x20000))\n{attempt}"
    assert "Read-only file system" in run_python(undo).output
    full = run_python("open('big', 'wb').write(bytes(1 << 25))", limits=Limits(disk_mib=16))
    assert full.status != 0


@needs_namespaces
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = run_python(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
    assert ended.status == 1
    assert "Error" in ended.output


@needs_namespaces
def test_what_a_program_started_ends_with_it_and_processes_are_counted() -> None:
    assert (
        run_python("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nprint('gone')").output
        == "gone\n"
    )
    bomb = run_python("import os\nfor _ in range(8): os.fork()", limits=QUICK)  # 256 processes, if it could
    assert "BlockingIOError" in bomb.output


def test_many_run_side_by_side() -> None:
    async def all_of_them() -> list[str]:
        return [ended.output for ended in await asyncio.gather(*(run_python_aside(f"print({n})") for n in range(6)))]

    assert asyncio.run(all_of_them()) == [f"{n}\n" for n in range(6)]


def test_a_program_sees_no_secret_of_ours_and_only_its_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-planted-secret-1")
    source = "import os, sys\nprint(sorted(os.environ), os.listdir(), sys.argv, __name__, repr(sys.stdin.read()))"
    told = run_python(source, files={"../../outside.txt": "x"}).output
    assert "planted" not in told
    assert told.replace("'LC_CTYPE', ", "") == (
        "['HOME', 'LANG', 'PATH', 'TMPDIR'] ['outside.txt'] ['program.py'] __main__ ''\n"
    )


def test_a_signal_that_ends_a_program_is_its_status() -> None:
    ended = run_python("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert ended.status == -signal.SIGSEGV


def test_output_that_is_no_text_is_read_and_what_stands_in_a_buffer_is_printed() -> None:
    ended = run_python("import sys\nsys.stdout.write('end')\nsys.stderr.buffer.write(b'\\xff ')")
    assert ended.status == 0
    assert ended.output == "end\ufffd "
