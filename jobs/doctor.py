"""Say what on this machine would stop or slow a run, a line for each thing looked at, with the remedy.

    python jobs/doctor.py [--json] [--run-directory runs]

Exit status: 0, or 1 if something fails. It needs nothing installed and mends nothing; it remembers how an engine ran.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from troupe.ops import doctor, doctor_network
from troupe.ops.doctor import Finding, Status

COLOURS: dict[Status, str] = {"ok": "\x1b[32m", "info": "\x1b[2m", "warn": "\x1b[33m", "fail": "\x1b[31m"}

PORTS = {
    6379: ("Ray", "stop it, or ray start --head --port=6380; a job that starts its own Ray avoids it"),
    8265: ("Ray's dashboard", "stop it, or use the address that ray start prints"),
    52365: (
        "Ray's agent, which starts submitted jobs",
        "stop it, or ray start --head --dashboard-agent-listen-port=52400",
    ),
    8000: ("Ray Serve", "stop it, or serve on another port"),
}
"""Port -> its purpose, and the remedy where something else has it."""


def checks(run_directory: Path) -> dict[str, Callable[[], Finding]]:
    """Return everything that is looked at, in the order of the report."""
    return {
        "platform": doctor.check_platform,
        "python": doctor.check_python,
        "packages": doctor.check_packages,
        "torch": doctor.check_torch,
        "project": doctor.check_project,
        "compiler": doctor.check_compiler,
        "extension": doctor.check_extension,
        "devices": doctor.check_devices,
        "processor": doctor.check_processor,
        "engine": doctor.check_engine,
        "memory": doctor.check_memory,
        "shared memory": doctor.check_shared_memory,
        "disk": functools.partial(doctor.check_disk, run_directory),
        "run directory": functools.partial(doctor.check_run_directory, run_directory),
        **{f"port {port}": functools.partial(doctor.check_port, port, *about) for port, about in PORTS.items()},
        "listening": doctor_network.check_listening,
        "cluster": doctor_network.check_cluster,
        "hub": doctor_network.check_hub,
        "secrets": doctor_network.check_secrets,
        ".env": doctor_network.check_env_file,
    }


def examine(name: str, check: Callable[[], Finding]) -> Finding:
    """Return the finding of a check; one that breaks is a finding too, and the others still run."""
    try:
        return check()
    except Exception as error:
        return doctor.fail(f"the check itself broke: {error!r}", f"report it: doctor, {name}")


def report(findings: Mapping[str, Finding], *, coloured: bool) -> str:
    lines = []
    for name, finding in findings.items():
        status = f"{COLOURS[finding.status]}{finding.status:4}\x1b[0m" if coloured else f"{finding.status:4}"
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        lines.append(f"{status} {name:14} {finding.message}{remedy}")
        lines += [f"{'':20}{detail}" for detail in finding.details]
    failed = sum(finding.status == "fail" for finding in findings.values())
    warned = sum(finding.status == "warn" for finding in findings.values())
    return "\n".join([*lines, "", f"{failed} failed, {warned} warnings"])


def main() -> int:
    arguments = parser().parse_args()
    findings = {name: examine(name, check) for name, check in checks(arguments.run_directory).items()}
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(finding) for name, finding in findings.items()}, indent=2))
    else:
        print(report(findings, coloured=sys.stdout.isatty()))
    return int(any(finding.status == "fail" for finding in findings.values()))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Say what on this machine would stop or slow a run.")
    made.add_argument("--json", action="store_true", help="print the findings as JSON")
    made.add_argument("--run-directory", type=Path, default=Path("runs"), help="where runs are written")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
