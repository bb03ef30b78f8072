"""Dry runs of several jobs in one process: what each would print, without starting any of them.

Jobs import libraries that take seconds to load, so a pipeline reads all of its recipes in one process. It is not the
caller's own: a job's file may do anything when it is read.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import runpy
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from troupe.config.loader import DRY_RUN, RECIPE_ONLY
from troupe.errors import WorkerError


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """The outcome of `python <job> ... --dry-run`."""

    status: int
    printed: str
    said: str
    """Its standard error."""


def dry_runs(commands: Sequence[Sequence[str]]) -> list[DryRun]:
    """Return the dry run of each command, `[jobs/x.py, recipe.yaml, a.b=value]`, in the caller's directory and
    environment.

    Raises WorkerError when the process that reads the jobs dies of one of them.
    """
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return list(process.map(dry_run, commands))
    except BrokenProcessPool:
        raise WorkerError(
            "the recipes could not be checked, the process that reads the jobs died; try the jobs one by one with "
            "--dry-run"
        ) from None


def dry_run(command: Sequence[str]) -> DryRun:
    """Run a job's file as Python would, with what it prints kept; it reads its recipe alone."""
    printed, said, status = io.StringIO(), io.StringIO(), 0
    sys.argv = [*command, DRY_RUN, RECIPE_ONLY]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            status = 1
            traceback.print_exc()
    return DryRun(status=status, printed=printed.getvalue(), said=said.getvalue())
