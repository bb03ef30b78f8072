"""Dry runs of several jobs in one process: what each would print and say, without starting any of them.

Jobs import libraries that take seconds to load, so a pipeline asks all of its stages at once. The process is another
one than the caller's, who neither wants those libraries nor what else a job's file does when it is read.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from troupe.config.loader import DRY_RUN, RECIPE_ONLY
from troupe.errors import WorkerError
from troupe.project import ROOT

START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from troupe.ops.dry_runs import answer; answer()"


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What `python <job> ... --dry-run` did."""

    status: int
    printed: str
    said: str
    """Its standard error."""


def dry_runs(commands: Sequence[Sequence[str]]) -> list[DryRun]:
    """The dry run of each command, `[jobs/x.py, recipe.yaml, a.b=value]`, in the caller's directory and environment.

    Raises WorkerError when the process that reads the jobs dies of one of them.
    """
    ran = subprocess.run(
        [sys.executable, "-c", START], input=json.dumps(list(map(list, commands))), capture_output=True, text=True
    )
    if ran.returncode:
        raise WorkerError(
            f"the recipes could not be checked, the process that reads the jobs ended with status {ran.returncode}: "
            f"{ran.stderr[-400:].strip()}; try the jobs one by one with --dry-run"
        )
    # Libraries may print as they load, past what Python can redirect; the answer is the last line.
    return [DryRun(**values) for values in json.loads(ran.stdout.splitlines()[-1])]


def answer() -> None:
    """The other side: commands on standard input, results on standard output."""
    commands = json.load(sys.stdin)
    results = [asdict(dry_run(command)) for command in commands]
    print(json.dumps(results))


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
