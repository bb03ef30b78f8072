"""Faults of a run: which process, what happens to it, and when; drawn by a seed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "TROUPE_CHAOS_MARK"
"""Set for the job; every process that it starts inherits it."""
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "starve": signal.SIGSTOP}
KINDS = (*SIGNALS, "fill")
"""A starved process gets no time for a few seconds, fewer than its deadline; a full disk has no room for as many."""
ROLES = ("generator", "engine", "policy", "reference", "rewarder", "driver", "disk")
STARVED_S = 4.0
FILLER = "filler"
ROLE = "TROUPE_ROLE"
"""Environment variable of a worker: `policy-0`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    kind: str
    role: str
    step: int
    """It comes after this step's line."""
    delay_s: float
    """Seconds after it, so that every phase has its faults."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.role}"


def draw(count: int, seed: int, *, kinds: Sequence[str], roles: Sequence[str], every: int = 2) -> list[Fault]:
    """Return `count` faults, `every` steps one, each kind and role about equally often.

    The driver cannot be stopped: what would notice is itself.
    """
    rng = random.Random(f"chaos/{seed}")
    pairs = [
        (kind, role)
        for role in roles
        for kind in kinds
        if (kind == "fill") == (role == "disk") and (kind, role) != ("stop", "driver")
    ]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        chosen += rng.sample(pairs, len(pairs))
    return [
        Fault(kind=kind, role=role, step=1 + every * place, delay_s=rng.uniform(0.0, 1.5))
        for place, (kind, role) in enumerate(chosen[:count])
    ]


def marked(mark: str) -> dict[int, dict[str, str]]:
    """The processes of the marked job that run, with their environments."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pairs = (part.partition(b"=") for part in (process / "environ").read_bytes().split(b"\0"))
            environment = {key.decode(errors="replace"): value.decode(errors="replace") for key, _, value in pairs}
            if environment.get(MARK) == mark:
                found[int(process.name)] = environment
    return found


def find(role: str, mark: str, driver: int) -> int | None:
    """The process of a role now; None where it is just being started."""
    if role == "driver":
        return driver
    wanted = "generator" if role == "engine" else role
    workers = {
        pid
        for pid, environment in marked(mark).items()
        if environment.get(ROLE, "").rpartition("-")[0] == wanted and is_worker(pid)
    }
    if role != "engine":
        return min(workers, default=None)
    children = [child.pid for pid in workers for child in children_of(pid) if "EngineCore" in child.name()]
    return min(children, default=None)


def is_worker(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).name().startswith("ray::")
    return False


def children_of(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def strike(fault: Fault, mark: str, driver: int, directory: Path) -> bool:
    """Let it happen; whether it hit something."""
    if fault.kind == "fill":
        fill(directory / FILLER)
        return True
    pid = find(fault.role, mark, driver)
    if pid is None:
        return False
    os.kill(pid, SIGNALS[fault.kind])
    if fault.kind == "starve":
        threading.Timer(STARVED_S, go_on, [pid]).start()
    return True


def go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def fill(filler: Path) -> None:
    """Take all the room of a disk for a while."""

    def take() -> None:
        with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"0" * 4096):
                pass

    take()
    threading.Timer(STARVED_S, filler.unlink).start()
