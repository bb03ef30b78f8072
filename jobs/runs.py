"""Runs here and in an S3-compatible store: what there is, copies in both directions, and new runs from old ones.

    python jobs/runs.py list [runs | runs/x | s3://bucket/prefix ...]
    python jobs/runs.py pull s3://bucket/prefix/x [--step best|latest|all|40 ...]      # into runs/x
    python jobs/runs.py push runs/x [s3://bucket/prefix] [--step ...]                  # by default to run.storage.url
    python jobs/runs.py delete runs/x | s3://bucket/prefix/x [--step 40 | --keep 2] [--yes]
    python jobs/runs.py fork runs/x | s3://bucket/prefix/x NAME [--step best|latest|40] [section.field=value ...]

Credentials come from the environment or `.env`, as boto3 finds them; so does AWS_ENDPOINT_URL, unless --endpoint-url is
given.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from troupe.config.program import program
from troupe.config.run import StorageConfig, check_address
from troupe.config.verbs import Arguments, verb_parser
from troupe.disk import human_bytes
from troupe.errors import ConfigError, StorageError
from troupe.runs.backup import pull
from troupe.runs.bucket import Bucket
from troupe.runs.checkpoint import CheckpointStore, Wanted
from troupe.runs.fork import fork
from troupe.runs.run_directory import locked
from troupe.runs.run_listing import ROW, Listed, local_runs, stored_runs
from troupe.runs.stored_run import CHECKPOINTS, StoredRun, begun_here, run_files, saved_storage

All = Literal["all"]


def main(arguments: list[str]) -> None:
    known = parser()
    given, rest = known.parse_known_args(arguments)
    # argparse takes no second list of positions after an option: fork x y --step 2 steps=60
    if rest and (given.call is not fork_run or not all("=" in one and not one.startswith("-") for one in rest)):
        known.error(f"unknown arguments: {' '.join(rest)}")
    given.rest = rest
    given.call(given)


def list_runs(given: argparse.Namespace) -> None:
    """Show runs, their steps and sizes."""
    found = [
        run
        for place in given.places
        for run in (stored_runs(_bucket(place, given)) if _is_address(place) else local_runs(Path(place)))
    ]
    if not found:
        places = ", ".join(given.places)
        raise ConfigError(f"there are no runs in {places}; give a directory of runs, or s3://bucket/prefix")
    rows = [ROW, *(run.row() for run in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def pull_run(given: argparse.Namespace) -> None:
    """Fetch a run, or steps of it into the directory that is here."""
    run = StoredRun(_bucket(given.source, given))
    manifests = run.manifests()
    steps = _steps(lambda one: run.choose(one, sorted(manifests)), given.step, manifests)
    path = Path(given.into) / run.bucket.prefix.rpartition("/")[2]
    with locked(path):
        if not path.exists():
            pull(run, path, manifests, steps)
        elif begun_here(path) != run.begun():
            raise StorageError(f"{path} is another run than {run.bucket.address}; give another --into")
        else:
            store = CheckpointStore(path / CHECKPOINTS)
            for step in sorted(steps - set(store.steps())):
                run.pull_step(step, manifests[step], path)
    print(f"{path} has step {', '.join(map(str, sorted(steps)))} of {run.bucket.address}")


def push_run(given: argparse.Namespace) -> None:
    """Store a run's files and checkpoints at its recipe's address, or at the given one."""
    path = Path(given.run)
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is no run directory (there is no config.yaml); give one, such as runs/quickstart")
    settings = saved_storage(path)
    url = given.url or settings.url
    if url is None:
        raise ConfigError(f"the recipe of {path} names no run.storage.url; say where: push {path} s3://bucket/prefix")
    run = StoredRun(_bucket(url, given, settings).at(path.name))
    run.bucket.check()
    with locked(path):
        if (begun := run.begun()) is not None and begun != begun_here(path) and run.manifests():
            raise StorageError(f"{run.bucket.address} holds another run than {path}; remove it, or push elsewhere")
        store = CheckpointStore(path / CHECKPOINTS)
        # The files are compared with the manifest when they are sent, so they need no check before.
        choose = functools.partial(store.choose, check=lambda path: None)
        steps = _steps(choose, given.step, store.steps()) if store.steps() or given.step else set()
        run.push({step: store.path(step) for step in steps}, run_files(path))
    print(f"{run.bucket.address} has step {', '.join(map(str, sorted(steps))) or 'none'} of {path}")


def delete(given: argparse.Namespace) -> None:
    """Remove a run, steps of it, or all steps but the newest and the best, once it was confirmed."""
    run = StoredRun(_bucket(given.run, given)) if _is_address(given.run) else None
    found = stored_runs(run.bucket) if run is not None else local_runs(Path(given.run))
    if len(found) != 1 or found[0].place != given.run.rstrip("/"):
        raise ConfigError(f"{given.run} is no run; `list {given.run}` shows what is there")
    listed = found[0]
    steps = _doomed(given, listed)
    if steps is not None and not steps:
        print(f"{listed.place} has no checkpoint to delete")
        return
    _confirm(listed, steps, sure=given.yes)
    if run is not None:
        run.remove() if steps is None else run.remove_steps(steps)
        return
    path = Path(given.run)
    with locked(path):
        if steps is None:
            shutil.rmtree(path.rename(path.with_name(f".deleting-{path.name}")))
            return
        store = CheckpointStore(path / CHECKPOINTS)
        for step in steps:
            store.remove(step)


def _doomed(given: argparse.Namespace, listed: Listed) -> set[int] | None:
    """Return the steps to delete; None: the whole run."""
    if given.keep is not None:
        if given.step:
            raise ConfigError("--step and --keep choose differently; give one of them")
        return set(listed.checkpoints) - listed.kept(given.keep)
    if not given.step:
        return None
    missing = sorted(set(given.step) - set(listed.checkpoints))
    if missing:
        raise ConfigError(
            f"{listed.place} has no checkpoint of step {missing[0]}; it has {listed.shown_checkpoints or 'none'}"
        )
    return set(given.step)


def _confirm(listed: Listed, steps: set[int] | None, *, sure: bool) -> None:
    size = human_bytes(listed.size if steps is None else sum(listed.checkpoints[step] for step in steps))
    what = "the whole run" if steps is None else f"step {', '.join(map(str, sorted(steps)))}"
    print(f"{listed.place}: {what}, {size} ({listed.state}, checkpoints: {listed.shown_checkpoints or 'none'})")
    if sure:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nothing is deleted without an answer; run it in a terminal, or give --yes")
    if input("delete it for ever? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was deleted")


def fork_run(given: argparse.Namespace) -> None:
    """Begin a new run at a step of another one."""
    if given.step == "all":
        raise ConfigError("a fork stands at one step; give a number, best or latest")
    if Path(given.name).name != given.name or given.name.startswith("."):
        raise ConfigError(
            f"a run's name is one directory name, without '/' and not starting with '.' (got {given.name!r})"
        )
    source = StoredRun(_bucket(given.source, given)) if _is_address(given.source) else Path(given.source)
    begun = fork(source, Path(given.into) / given.name, step=given.step, overrides=[*given.overrides, *given.rest])
    print(
        f"{begun.path} stands at step {begun.step} of {given.source}; it goes on with\n  python jobs/{begun.program} "
        f"{begun.path}/config.yaml"
    )


# -- what the commands share -----------------------------------------------------------------------------------


def _is_address(place: str) -> bool:
    return place.startswith("s3://")


def _bucket(url: str, given: argparse.Namespace, saved: StorageConfig | None = None) -> Bucket:
    try:
        check_address(url, "the address")
    except ValueError as error:
        raise ConfigError(f"{error} (got {url!r})") from None
    saved = saved or StorageConfig()
    return Bucket(url, endpoint_url=given.endpoint_url or saved.endpoint_url, region=given.region or saved.region)


def _steps(choose: Callable[[Wanted], int], wanted: Sequence[Wanted | All] | None, steps: Iterable[int]) -> set[int]:
    """Return the wanted ones of `steps`; `choose` raises for one that is not there."""
    return {step for one in wanted or ("latest", "best") for step in (steps if one == "all" else [choose(one)])}


def _step(text: str) -> int | str:
    if text in ("best", "latest", "all"):
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no step; give a number, best, latest or all")
    return int(text)


STORE: Arguments = {
    "--endpoint-url": {"help": "another store than Amazon's (AWS_ENDPOINT_URL)"},
    "--region": {"help": "region of the bucket (AWS_REGION)"},
}
INTO: Arguments = {"--into": {"default": "runs", "help": "directory that holds the runs"}}
STEPS: Arguments = {
    "--step": {"nargs": "+", "type": _step, "help": "steps, best, latest or all; default: latest and best"}
}
LIST: Arguments = {"places": {"nargs": "*", "default": ["runs"], "help": "directories or s3://bucket/prefix"}}
PULL: Arguments = {"source": {"help": "s3://bucket/prefix/run"}}
PUSH: Arguments = {
    "run": {"help": "run directory"},
    "url": {"nargs": "?", "help": "s3://bucket/prefix that holds the runs; default: its run.storage.url"},
}
DELETE: Arguments = {
    "run": {"help": "run directory or s3://bucket/prefix/run"},
    "--step": {"nargs": "+", "type": int, "help": "only these checkpoints"},
    "--keep": {"type": int, "help": "only the checkpoints that are neither the newest KEEP nor the best"},
    "--yes": {"action": "store_true", "help": "do not ask"},
}
FORK: Arguments = {
    "source": {"help": "run directory or s3://bucket/prefix/run"},
    "name": {"help": "name of the new run"},
    "overrides": {"nargs": "*", "help": "section.field=value that the new run has otherwise"},
    "--step": {"type": _step, "default": "best", "help": "a step, best or latest"},
}
VERBS = {
    "list": (list_runs, {**STORE, **LIST}),
    "pull": (pull_run, {**STORE, **PULL, **STEPS, **INTO}),
    "push": (push_run, {**STORE, **PUSH, **STEPS}),
    "delete": (delete, {**STORE, **DELETE}),
    "fork": (fork_run, {**STORE, **FORK, **INTO}),
}


def parser() -> argparse.ArgumentParser:
    return verb_parser(str(__doc__), VERBS)


if __name__ == "__main__":
    with program():
        main(sys.argv[1:])
