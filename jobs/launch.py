"""Rent or gather machines, run a job on them, and give them back: a line for each.

    python jobs/launch.py up                                           # start the cluster of cluster.yaml, or reuse it
    python jobs/launch.py submit -- python jobs/train_grpo.py my.yaml  # start a job there and follow it
    python jobs/launch.py logs | stop | fetch | down

`--cluster FILE` names another cluster (cluster.local.yaml: your own machines), `--address URL` one that something else
started. Exit status: 0; 1 where the job failed; 130 where it was interrupted, 143 where it was stopped; 2 with one
sentence where something is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.config.program import program
from troupe.config.verbs import Arguments, verb_parser
from troupe.errors import ClusterError, ConfigError, TroupeError
from troupe.ops.launching import Cluster, Jobs, env_file
from troupe.project import ROOT

ENDS = {"SUCCEEDED": 0, "INTERRUPTED": 130, "STOPPED": 143}
"""Exit status of following a job, by how it ended; 1 where it failed."""
RECONNECTIONS = 5
"""Times in a row that following a job opens the connection anew without seeing a new line."""


def up(options: argparse.Namespace) -> int:
    """Start the cluster, or find it up; wait until its machines have joined."""
    cluster = Cluster(options.cluster)
    with contextlib.suppress(ClusterError):
        if cluster.exists():
            show_machines(cluster, options, "is up already")
            return 0
    cluster.start(options.timeout)
    show_machines(cluster, options, "is up")
    return 0


def show_machines(cluster: Cluster, options: argparse.Namespace, state: str) -> None:
    with cluster.forwarded(options.connect_timeout) as url:
        machines = Jobs(url).wait_for_machines(cluster.num_machines, options.timeout)
    print(f"{cluster.name} {state}: {len(machines)} machines")
    for machine in machines:
        print(f"  {machine['address']}: {machine.get('CPU', 0):g} CPU, {machine.get('GPU', 0):g} GPU")


def submit(options: argparse.Namespace) -> int:
    """Start a job in a copy of this project, and follow it."""
    if not options.command:
        raise ConfigError(
            "there is no command; write it after two dashes: submit -- python jobs/train_grpo.py my.yaml run.name=mine"
        )
    if options.down_after_run and (options.address or options.detach):
        raise ConfigError("--down-after-run needs a cluster file and follows the job; leave --address and --detach out")
    names = list(env_file())
    runs = options.runs or (None if options.address else Cluster(options.cluster).runs)
    command = with_run_directory(options.command, runs)
    with connected(options) as jobs:
        job = jobs.submit(command)
    print(f"job {job}: {' '.join(command)}", flush=True)
    if names:
        print(f"  with {', '.join(names)} of .env", flush=True)
    if options.detach:
        print(hints(job, options))
        return 0
    status = follow(job, options)
    if options.down_after_run:
        cluster = Cluster(options.cluster)
        if runs is not None and not options.no_fetch:
            bring_back(cluster, runs)
        cluster.stop(options.timeout)
    return status


def with_run_directory(command: Sequence[str], runs: str | None) -> list[str]:
    """Return the command; a training job that names no directory writes to `runs`: a job's own is temporary."""
    trains = any(Path(part).name.startswith("train_") and part.endswith(".py") for part in command)
    if not trains or any(part.startswith("run.directory=") for part in command):
        return list(command)
    if runs is None:
        raise ConfigError(
            "where is the run directory to lie on the cluster? Add --runs DIRECTORY with a full path there"
        )
    return [*command, f"run.directory={runs}"]


def logs(options: argparse.Namespace) -> int:
    """Show the output of a job, and go on until it ends."""
    with connected(options) as jobs:
        job = options.job or jobs.newest()
        jobs.status(job)
    return follow(job, options)


def follow(job: str, options: argparse.Namespace) -> int:
    """Show the job's output to its end, over broken connections; returns the exit status for how it ended."""
    shown, broken, state = 0, 0, "RUNNING"
    try:
        while state in ("PENDING", "RUNNING"):
            before = shown
            try:
                with connected(options) as jobs:
                    for piece in jobs.output(job, skip=shown):
                        print(piece, end="", flush=True)
                        shown += len(piece)
                    state, message = jobs.status(job)
            except (OSError, RuntimeError):
                broken = broken + 1 if shown == before else 1
                if broken > RECONNECTIONS:
                    remedy = hints(job, options)
                    raise ClusterError(f"the connection to the cluster breaks again and again; {remedy}") from None
    except KeyboardInterrupt:
        print(f"\nno longer followed; the job goes on. {hints(job, options)}", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"job {job}: {state}" + (f" ({message.splitlines()[0]})" if message and state != "SUCCEEDED" else ""))
    return ENDS.get(state, 1)


def hints(job: str, options: argparse.Namespace) -> str:
    where = f"--address {options.address}" if options.address else f"--cluster {options.cluster}"
    return (
        f"To follow it: python jobs/launch.py logs {job} {where}; to end it: python jobs/launch.py stop {job} {where}"
    )


def stop(options: argparse.Namespace) -> int:
    """End a job; the cluster stays."""
    with connected(options) as jobs:
        job = options.job or jobs.newest()
        print(f"job {job}: {jobs.stop(job, options.timeout)}")
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Copy run directories from the head into runs/ here."""
    cluster = Cluster(options.cluster)
    runs = options.runs or cluster.runs
    if runs is None:
        raise ConfigError(f"{options.cluster} does not say where the runs lie; add --runs DIRECTORY")
    bring_back(cluster, runs, options.run)
    return 0


def bring_back(cluster: Cluster, runs: str, name: str | None = None) -> None:
    source, target = (f"{runs}/{name}", ROOT / "runs" / name) if name else (runs, ROOT / "runs")
    cluster.fetch(source, target)
    print(f"{source} of {cluster.name} is in {target}")


def down(options: argparse.Namespace) -> int:
    """Give the machines back; what was not fetched or stored elsewhere is lost."""
    cluster = Cluster(options.cluster)
    cluster.stop(options.timeout)
    print(f"{cluster.name} is down")
    return 0


@contextlib.contextmanager
def connected(options: argparse.Namespace) -> Iterator[Jobs]:
    """Reach the jobs of the cluster, or of the dashboard that --address names."""
    if options.address:
        yield Jobs(options.address)
        return
    with Cluster(options.cluster).forwarded(options.connect_timeout) as url:
        yield Jobs(url)


COMMON: Arguments = {
    "--cluster": {"type": Path, "default": Path("cluster.yaml"), "help": "the file for `ray up` (cluster.yaml)"},
    "--timeout": {"type": float, "default": 1800, "metavar": "S", "help": "seconds for starting, stopping (1800)"},
    "--connect-timeout": {
        "type": float,
        "default": 60,
        "metavar": "S",
        "help": "seconds until the dashboard answers (60)",
    },
}
ADDRESS = {"--address": {"metavar": "URL", "help": "a dashboard that is reachable already, instead of --cluster"}}
RUNS = {"--runs": {"metavar": "DIRECTORY", "help": "where runs lie on the cluster (beside the project there)"}}
JOB = {"job": {"nargs": "?", "help": "the job's id; the newest when left out"}}
RUN = {"run": {"nargs": "?", "help": "name of the run; all of them when left out"}}
SUBMIT = {
    "--detach": {"action": "store_true", "help": "do not follow the job"},
    "--down-after-run": {"action": "store_true", "help": "at the job's end fetch the runs and give the cluster back"},
    "--no-fetch": {"action": "store_true", "help": "with --down-after-run: the runs are stored elsewhere already"},
}
VERBS = {
    "up": (up, COMMON),
    "submit": (submit, {**COMMON, **ADDRESS, **RUNS, **SUBMIT}),
    "logs": (logs, {**COMMON, **ADDRESS, **JOB}),
    "stop": (stop, {**COMMON, **ADDRESS, **JOB}),
    "fetch": (fetch, {**COMMON, **RUNS, **RUN}),
    "down": (down, COMMON),
}


def parser() -> argparse.ArgumentParser:
    return verb_parser(str(__doc__), VERBS)


def main(arguments: Sequence[str]) -> int:
    own = list(itertools.takewhile(lambda part: part != "--", arguments))
    options = parser().parse_args(own)
    options.command = list(arguments[len(own) + 1 :])
    try:
        return int(options.call(options))
    except TroupeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; what was started goes on: python jobs/launch.py down gives the machines back", file=sys.stderr
        )
        return 130


if __name__ == "__main__":
    with program():  # what `ray up` needs of a cloud's credentials may stand in .env
        raise SystemExit(main(sys.argv[1:]))
