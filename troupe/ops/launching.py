"""A cluster seen from your own machine: started and ended by Ray's launcher, reached through ssh, given jobs.

`Cluster` runs `ray up`, `ray down` and `ray rsync-down` with one file of the launcher; `Jobs` is Ray's job SDK at a
dashboard. What is printed of it is `jobs/launch.py`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
import yaml

from troupe.environment import ENV_FILE, read_env_file
from troupe.errors import ClusterError, ConfigError, first_line
from troupe.processes.sockets import listen
from troupe.processes.stopping import INTERRUPTIONS
from troupe.processes.subprocesses import Ended, run_logged
from troupe.project import CACHE, ROOT

RAY = str(Path(sys.executable).with_name("ray"))
LOGS = CACHE / "launch"
POLL_S = 1.0
AGENT_TIMEOUT_S = 120.0
"""Seconds in which a cluster that just came up begins to accept jobs."""
PROBE_TIMEOUT_S = 5.0
STOP_WAIT_S = 600
"""Seconds that a stopped job has to finish its step and save, before Ray kills it; by itself Ray gives it 3."""


class Cluster:
    """A cluster as a file of `ray up` describes it."""

    def __init__(self, file: Path) -> None:
        """Read the file. Raises ConfigError where it is no cluster's, or Ray's tools, ssh and rsync, are missing."""
        self.file = file.resolve()
        try:
            self._settings: dict[str, Any] = yaml.safe_load(self.file.read_text())
            self.name = str(self._settings["cluster_name"])
        except OSError as error:
            raise ConfigError(
                f"{file} cannot be read: {error.strerror}; give --cluster the file that describes your cluster"
            ) from None
        except (yaml.YAMLError, TypeError, KeyError):
            raise ConfigError(f"{file} is no cluster file of `ray up`: it has no cluster_name") from None
        if "core" in (self._settings.get("file_mounts") or {}).values():
            raise ConfigError(
                f"{file} brings core, data and others, which lie in troupe/ now: take file_mounts from cluster.yaml"
            )
        missing = [tool for tool in ("ssh", "rsync") if shutil.which(tool) is None]
        if missing:
            raise ConfigError(
                f"Ray reaches a cluster's machines with ssh and rsync, and {' and '.join(missing)} is not installed; "
                f"on Debian and Ubuntu: apt install openssh-client rsync"
            )

    @property
    def runs(self) -> str | None:
        """Return where runs are on the cluster: beside the project; None where the file does not mount it."""
        mounts = self._settings.get("file_mounts") or {}
        project = next((Path(there).parent for there, here in mounts.items() if here == "troupe"), None)
        return str(project.with_name("runs")) if project is not None and project.is_absolute() else None

    @property
    def num_machines(self) -> int:
        """Count the machines that are up from the start."""
        if "worker_ips" in self._settings.get("provider", {}):
            return 1 + self._settings.get("min_workers", len(self._settings["provider"]["worker_ips"]))
        types = self._settings.get("available_node_types", {})
        return 1 + sum(kind.get("min_workers", 0) for kind in types.values())

    def exists(self) -> bool:
        """Return whether the launcher knows a head."""
        return _ray(["get-head-ip", str(self.file)]).returncode == 0

    def start(self, timeout_s: float) -> None:
        """Run `ray up`, live on our console. Raises ClusterError with its last line when it fails or takes too long."""
        if not (Path.home() / ".ray" / "auth_token").exists():
            _ray(["get-auth-token", "--generate"])  # prints the token: not on our console
        ended = self._run(["up", "--yes", "--no-config-cache", str(self.file)], timeout_s)
        left = f"; what it had started is given back by: python jobs/launch.py down --cluster {self.file.name}"
        if ended.timed_out:
            raise ClusterError(f"the cluster {self.name} did not come up within {timeout_s:.0f} s{left}")
        if ended.status:
            raise ClusterError(f"`ray up` failed for {self.name}: {_last(ended.tail)}{left}")

    def stop(self, timeout_s: float) -> None:
        """Run `ray down`: machines of a cloud are given back, on your own Ray ends."""
        self._stop_workers(timeout_s)
        ended = self._run(["down", "--yes", str(self.file)], timeout_s)
        if ended.timed_out or ended.status:
            why = f"it took longer than {timeout_s:.0f} s" if ended.timed_out else _last(ended.tail)
            remedy = "run it again, and look at the provider's console: what still runs costs"
            raise ClusterError(f"`ray down` failed for {self.name}: {why}; {remedy}")

    def _stop_workers(self, timeout_s: float) -> None:
        """End Ray on your own machines beside the head, which reaches them.

        `ray down` ends it on the head alone. On the others the node notices that, and its log monitor stays for ever.
        """
        provider, auth = self._settings["provider"], self._settings.get("auth", {})
        machines = provider.get("worker_ips") or []
        if not machines or not self.exists():
            return
        # The launcher puts the key on the head under this name, where the file has one.
        key = "-i ~/ray_bootstrap_key.pem" if auth.get("ssh_private_key") else ""
        ssh = (
            f"ssh -o StrictHostKeyChecking=no -o ConnectTimeout=10 {key} -l "
            f"{shlex.quote(str(auth.get('ssh_user', 'root')))}"
        )
        stop = "\"bash --login -c -i 'source ~/.bashrc; ray stop'\""  # the shell in which the launcher started it
        stops = " & ".join(f"{ssh} {shlex.quote(str(machine))} {stop}" for machine in machines)
        self._run(["exec", str(self.file), f"{stops} & wait"], timeout_s)

    def fetch(self, source: str, target: Path) -> None:
        """Copy a directory of the head here; what is here already is not copied again."""
        target.mkdir(parents=True, exist_ok=True)
        ended = self._run(["rsync-down", str(self.file), f"{source.rstrip('/')}/", f"{target}/"])
        if ended.status:
            raise ClusterError(f"{source} of {self.name} could not be copied to {target}: {_last(ended.tail)}")

    @contextlib.contextmanager
    def forwarded(self, timeout_s: float) -> Iterator[str]:
        """Forward the dashboard through ssh for as long as the block lasts; yields its URL on this machine."""
        with listen("127.0.0.1", 0) as probe:
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with tempfile.TemporaryFile("w+") as said:
            tunnel = subprocess.Popen(
                [RAY, "dashboard", str(self.file), "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=ROOT,
                env=_environment(),
                start_new_session=True,
            )
            try:
                answered = _wait(lambda: _answers(url) or tunnel.poll() is not None, timeout_s)
                if not answered or tunnel.poll() is not None:
                    said.seek(0)
                    why = f"nothing answered within {timeout_s:.0f} s" if not answered else _last(said.readlines())
                    remedy = "python jobs/launch.py up starts the cluster"
                    raise ClusterError(f"the dashboard of {self.name} cannot be reached through ssh: {why}; {remedy}")
                yield url
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(tunnel.pid, signal.SIGTERM)
                tunnel.wait()

    def _run(self, arguments: list[str], timeout_s: float = math.inf) -> Ended:
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{self.name}.log"
        # The file's relative paths are the project's.
        ended = run_logged([RAY, *arguments], log, _environment(), directory=ROOT, timeout_s=timeout_s)
        if ended.interrupted:
            raise KeyboardInterrupt
        return ended


class Jobs:
    """The jobs of a cluster whose dashboard answers at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    @cached_property
    def _client(self) -> Any:
        os.environ["RAY_AUTH_MODE"] = "token"  # Ray looks at it when it is imported
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.WARNING)  # after the import, which sets it
        try:
            return JobSubmissionClient(self.url)
        except (AuthenticationError, requests.HTTPError) as error:
            raise ClusterError(
                f"the cluster at {self.url} does not let us in ({first_line(error)}); the token in "
                "~/.ray/auth_token must be the one that it was started with"
            ) from None
        except (ConnectionError, RuntimeError) as error:
            raise ClusterError(f"no Ray dashboard answers at {self.url}: {error}") from None

    def machines(self) -> list[dict[str, Any]]:
        """Return address and resources of each machine that is up."""
        os.environ["RAY_AUTH_MODE"] = "token"  # before Ray is imported
        from ray.util.state import list_nodes

        nodes = list_nodes(address=self.url, filters=[("state", "=", "ALIVE")])
        return [{"address": node.node_ip, **node.resources_total} for node in nodes]

    def wait_for_machines(self, count: int, timeout_s: float) -> list[dict[str, Any]]:
        """Return the machines, once there are `count` of them."""
        if not _wait(lambda: len(self.machines()) >= count, timeout_s):
            raise ClusterError(
                f"{len(self.machines())} of {count} machines joined within {timeout_s:.0f} s; `ray monitor FILE` shows "
                "why the others did not. What is up stays up, and costs"
            )
        return self.machines()

    def submit(self, command: Sequence[str]) -> str:
        """Start `command` in a copy of the project; returns the job's id.

        `.env` goes with the copy and every process of the job reads it there. As `env_vars` of the job its values
        would stand in the logs of Ray's agents and in what `ray job list` prints.
        """
        ignored = (ROOT / ".gitignore").read_text().splitlines() if (ROOT / ".gitignore").exists() else []
        os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # Ray reads it; the list above stands in for it
        settings = {
            "working_dir": str(ROOT),
            "excludes": [*ignored, ".git", ".*_cache", f"!/{ENV_FILE}"],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            "worker_process_setup_hook": "troupe.environment.load_env_file",
        }
        deadline = time.monotonic() + AGENT_TIMEOUT_S
        while True:
            try:
                return self._client.submit_job(entrypoint=shlex.join(command), runtime_env=settings)
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise ClusterError(f"the cluster refused the job: {str(error).strip().splitlines()[-1]}") from None
                time.sleep(POLL_S)

    def newest(self) -> str:
        jobs = [job for job in self._client.list_jobs() if job.submission_id]
        if not jobs:
            raise ClusterError("the cluster has had no job; python jobs/launch.py submit -- COMMAND starts one")
        return max(jobs, key=lambda job: job.start_time or 0).submission_id

    def output(self, job: str, *, skip: int = 0) -> Iterator[str]:
        """Yield a job's output after its first `skip` characters. Raises OSError or RuntimeError when cut off."""
        pieces = self._client.tail_job_logs(job)

        async def next_piece() -> str | None:
            return await anext(pieces, None)

        with asyncio.Runner() as runner:
            while (piece := runner.run(next_piece())) is not None:
                yield piece[skip:]
                skip = max(skip - len(piece), 0)

    def status(self, job: str) -> tuple[str, str]:
        """Return (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED or INTERRUPTED, Ray's message)."""
        try:
            info = self._client.get_job_info(job)
        except RuntimeError as error:
            raise ClusterError(f"the cluster knows no job {job!r}: {str(error).strip().splitlines()[-1]}") from None
        # Ray counts a job that Ctrl-C or SIGTERM ended among the failed.
        interrupted = str(info.status) == "FAILED" and getattr(info, "driver_exit_code", None) in INTERRUPTIONS
        return "INTERRUPTED" if interrupted else str(info.status), info.message or ""

    def stop(self, job: str, timeout_s: float) -> str:
        """Have the job end; returns its state then."""
        self.status(job)
        self._client.stop_job(job)
        if not _wait(lambda: self.status(job)[0] not in ("PENDING", "RUNNING"), timeout_s):
            raise ClusterError(
                f"job {job} did not end within {timeout_s:.0f} s; stop it again, or take the cluster down"
            )
        return self.status(job)[0]


def env_file() -> dict[str, str]:
    """Return what `.env` gives a job and Ray's launcher. Raises ConfigError with the malformed line."""
    file = ROOT / ENV_FILE
    return read_env_file(file) if file.is_file() else {}


def _ray(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAY, *arguments], cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)


def _environment() -> dict[str, str]:
    return {**env_file(), **os.environ, "RAY_AUTH_MODE": "token"}


def _answers(url: str) -> bool:
    """Return whether a dashboard is there, even one that wants a token."""
    with contextlib.suppress(requests.RequestException):
        requests.get(f"{url}/api/version", timeout=PROBE_TIMEOUT_S)
        return True
    return False


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _last(lines: Sequence[str]) -> str:
    """Return the last line that is not blank."""
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
