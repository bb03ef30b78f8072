"""Small file systems of their own, so that a disk is really full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def mount(place: Path, size: str) -> bool:
    """Mount a file system of `size` ("64m") at a directory; whether that was possible, as for root."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def small_disk_at(place: Path, size: str) -> Iterator[Path]:
    """A new directory that is a file system of `size`; the test is skipped where none may be mounted."""
    place.mkdir()
    if not mount(place, size):
        pytest.skip("only root may mount a file system")
    try:
        yield place
    finally:
        unmount(place)
