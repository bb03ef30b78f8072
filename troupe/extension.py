"""The one C++ extension that DeepSpeed compiles on a CPU: where it lies, whether it is built, whether its lock is
stale.

torch guards the build with a file named `lock` and deletes it afterwards; a process killed during the build leaves
it, and every later start waits for it for ever. The installer builds the extension once and the doctor looks at it;
only the standard library is used, because both must work in a broken environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

NAME = "deepspeed_shm_comm"
BUILD_DEADLINE_S = 600.0
"""Seconds a build may take; it needs about 20 on two free cores."""

State = Literal["built", "absent", "building", "stale"]


def extension_directory(environment: str | Path = sys.prefix) -> Path:
    """Return the directory of the extension of a Python environment: inside it, unless TORCH_EXTENSIONS_DIR names
    another place.

    torch's own default is one directory for all environments of a user, which would rebuild it in turns.
    """
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(environment) / "torch_extensions") / NAME


def use_environment_cache() -> None:
    """Make torch look where `extension_directory` states, in this process and in those it starts."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extension_directory().parent)


def extension_state(directory: Path | None = None) -> State:
    directory = directory or extension_directory()
    lock = directory / "lock"
    if lock.exists():
        return "building" if _is_held(lock) else "stale"
    return "built" if (directory / f"{NAME}.so").is_file() else "absent"


def remove_stale_lock(directory: Path | None = None) -> Path | None:
    """Delete the lock of a build that was killed and return its path; None where there is no such lock."""
    directory = directory or extension_directory()
    if extension_state(directory) != "stale":
        return None
    lock = directory / "lock"
    lock.unlink(missing_ok=True)
    return lock


def _is_held(lock: Path) -> bool:
    """Return whether a process of this machine has the file open, as torch does for as long as it builds."""
    target = str(lock.resolve())
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(link) == target for link in descriptors.iterdir()):
                return True
        except OSError:  # the process ended, or is another user's
            continue
    return False
