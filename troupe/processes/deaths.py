"""How a process ended, as a sentence that a person can use: by which signal or status, what it did, and what helps.

A native death (an illegal instruction, a crash in C++, the kernel's memory killer) leaves no Python error. What is left
is the exit status, where somebody collected it, the process's own stderr, and the kernel's log; this module reads the
three.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

from troupe.secrets import page_text

TAIL_LINES = 20
TAIL_BYTES = 64 * 1024
CAUSES = {
    signal.SIGILL: "the processor refused an instruction",
    signal.SIGSEGV: "it touched memory that is not its own",
    signal.SIGBUS: "memory that it mapped is not there, most often a full /dev/shm",
    signal.SIGFPE: "an impossible integer operation",
    signal.SIGABRT: "a library gave up",
    signal.SIGKILL: "killed, most often for memory",
    signal.SIGTERM: "asked to end",
}

# What native code and Python's own fault handler write to stderr before a signal ends the process.
FATAL = re.compile(
    r"\*\*\* (SIG[A-Z]+) received|Fatal Python error: (Illegal instruction|Segmentation fault|Bus "
    r"error|Floating-point exception|Aborted)"
)
FATAL_NAMES = {
    "Illegal instruction": signal.SIGILL,
    "Segmentation fault": signal.SIGSEGV,
    "Bus error": signal.SIGBUS,
    "Floating-point exception": signal.SIGFPE,
    "Aborted": signal.SIGABRT,
}
RAISED = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b(?:: .*)?)$"
)
"""The last line of a Python traceback, behind vLLM's prefixes where it has some."""

GONE = "is gone without a last word, as after SIGKILL (killed, most often for memory)"
"""Of a process whose exit status nobody collected and that wrote nothing of its end."""

REMEDIES: Sequence[tuple[str, str]] = (
    (r"SIGILL", "`make doctor` tries the engine on this machine and names a kernel that works"),
    (
        r"No space left on device|SIGBUS",
        "give /dev/shm more room (docker run --shm-size=8g), or free the disk that the last lines name",
    ),
    (
        r"SIGKILL|can't allocate memory|out of memory|OutOfMemory|MemoryError|Cannot allocate memory",
        "`--dry-run` estimates what each role takes; lower policy.row_tokens or generator.cpu_cache_gib, or take a "
        "smaller model",
    ),
)


def describe_exit(status: int) -> str:
    """Return how a process ended: `status` is its exit status, or minus the number of the signal that ended it."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"was ended by signal {-status}"
    cause = CAUSES.get(number)
    return f"was ended by {number.name}" + (f" ({cause})" if cause else "")


def describe_death(process: str, status: int | None, *, doing: str = "", tail: Sequence[str] = (), pid: int = 0) -> str:
    """Return one sentence on the death of `process`.

    `status` is as in `describe_exit`, None where nobody collected it: then the signs in `tail`, the last lines of its
    stderr, decide. `doing` is what it was busy with ("it sampled 64 answers").
    """
    status = signal_in(tail) if status is None else status
    raised = last_exception(tail)
    killed = status == -signal.SIGKILL or (status is None and not raised)
    unknown = GONE if killed else "ended"
    text = f"{process} {unknown if status is None else describe_exit(status)}" + (f" while {doing}" if doing else "")
    if killed:
        text += f"; {memory_report(pid)}"
    elif raised and (status is None or status > 0):
        text += f": {raised}"
    remedy = find_remedy([text, *tail])
    return f"{text}; {remedy}" if remedy else text


def signal_in(lines: Sequence[str]) -> int | None:
    """Return minus the number of the signal whose marks are in the last lines of a process; None without any."""
    for line in lines:
        if (found := FATAL.search(line)) is not None:
            name, words = found.groups()
            number = getattr(signal, name, None) if name else FATAL_NAMES[words]
            return -int(number) if number is not None else None
    return None


def last_exception(lines: Sequence[str]) -> str:
    """Return the last line of the last Python traceback in `lines`, or nothing."""
    for line in reversed(lines):
        if (found := RAISED.match(line.strip())) is not None:
            return found.group(1)
    return ""


def find_remedy(texts: Sequence[str]) -> str:
    """Return what helps, where the cause is a known one."""
    whole = "\n".join(texts)
    return next((remedy for pattern, remedy in REMEDIES if re.search(pattern, whole)), "")


def memory_report(pid: int = 0) -> str:
    """Return what the kernel reports of memory: its own line on the death of `pid`, or what is free now."""
    if pid and (line := _kernel_line(pid)):
        return f"the kernel says: {line}"
    memory = psutil.virtual_memory()
    gib = 2**30
    free = f"{memory.available / gib:.1f} of {memory.total / gib:.1f} GiB of memory are free now"
    limit = _cgroup_limit()
    if limit is not None and limit < memory.total:
        free += f", and this container may use {limit / gib:.1f} GiB"
    return free


def _kernel_line(pid: int) -> str:
    """Return the kernel's line on a process that it killed; readable for root on most systems."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    found = ""
    try:
        while True:
            try:
                record = os.read(log, 8192).decode(errors="replace")
            except BrokenPipeError:  # overwritten while it was read: the next one
                continue
            if f"Killed process {pid} " in record:
                found = record.partition(";")[2].splitlines()[0]
    except OSError:  # no more
        return found
    finally:
        os.close(log)


def _cgroup_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def last_lines(path: Path | str, count: int = TAIL_LINES) -> list[str]:
    """Return the last lines of a log that are not blank, without secrets and escapes; none where it cannot be read.

    Where Python's fault handler wrote a stack, the lines begin with it: its first lines name the place of the fault.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line for line in page_text(text).splitlines() if is_worth_reading(line)]
    fatal = next((i for i in reversed(range(len(lines))) if lines[i].startswith("Fatal Python error")), len(lines))
    return lines[fatal:][:count] if fatal < len(lines) - count else lines[-count:]


def is_worth_reading(line: str) -> bool:
    """Return whether a line of stderr states something: not blank, no mark of Ray, no list of modules."""
    return bool(line.strip()) and not line.startswith(
        (":job_id:", ":actor_name:", ":task_name:", "Extension modules: ")
    )


def quote_lines(lines: Sequence[str], title: str) -> str:
    """Return `lines` below a title, as the part of an error that follows its sentence; nothing without lines."""
    return "\n".join([title, *(f"  | {line}" for line in lines)]) if lines else ""
