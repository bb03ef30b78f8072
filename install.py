"""Make `.venv`: the stack for this machine (CPU or GPU) from its lock, this project, and DeepSpeed's extension.

`make install` runs it, and so does every other target before its own work; where the environment already matches
the lock it ends at once. Only the standard library is used, because nothing is installed yet when it starts. What
the environment is worth afterwards is told by `jobs/doctor.py`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from troupe.extension import BUILD_DEADLINE_S, extension_directory, remove_stale_lock

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "troupe-install.json"
LOG = ROOT / ".cache" / "install.log"
REQUIREMENTS = ROOT / "requirements"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SUPPORTED_PYTHONS = ((3, 11), (3, 12))
NEEDED_GIB = {"cpu": 6, "gpu": 25}
"""Free disk for the environment; the packages' download cache may need as much again elsewhere."""


class InstallError(Exception):
    """What is missing and what to do about it, in one sentence."""


def install(*, wanted: str, force: bool = False) -> str:
    """Bring `.venv` to the lock of the wanted stack; returns what there is now, in one sentence."""
    stack = chosen_stack(wanted, read_stamp())
    if not force and is_ready(stack):
        return f"The environment is ready ({stack} stack)."
    with only_one_install():
        if not force and is_ready(stack):
            return f"The environment is ready ({stack} stack); another install made it."
        problems = missing_prerequisites(stack)
        if problems:
            raise InstallError("\n  ".join(problems))
        start = time.monotonic()
        lock = REQUIREMENTS / f"{stack}.txt"
        make_venv(stack)
        STAMP.unlink(missing_ok=True)
        python = str(VENV / "bin" / "python")
        pip_install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--retries", "2"]
        step("uv", [*pip_install, f"uv=={locked_version(lock, 'uv')}"])
        environment = index_environment(pip_settings(python), os.environ)
        uv_install = [str(VENV / "bin" / "uv"), "pip", "install", "--python", python, "--no-deps"]
        torch = f"torch=={locked_version(lock, 'torch')}"
        source = torch_source([*uv_install, "--dry-run", torch], environment) if stack == "cpu" else []
        step(torch, [*uv_install, *source, torch], environment=environment)
        step(f"packages of {lock.relative_to(ROOT)}", [*uv_install, "-r", str(lock)], environment=environment)
        step("this project", [*uv_install, "--no-build-isolation", "--editable", str(ROOT)], environment=environment)
        if stack == "cpu":
            build_extension(python)
        STAMP.write_text(json.dumps({"stack": stack, "digest": digest(stack), "venv": str(VENV)}) + "\n")
    return f"Installed the {stack} stack into .venv in {time.monotonic() - start:.0f} s."


def chosen_stack(wanted: str, stamp: Mapping[str, str]) -> str:
    """What was asked for; else what an earlier install chose (perhaps against the machine); else what fits."""
    if wanted != "auto":
        return wanted
    return stamp.get("stack") or ("gpu" if has_nvidia_gpu() else "cpu")


def has_nvidia_gpu() -> bool:
    if any(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*")):
        return True
    try:  # a GPU inside WSL has no /dev/nvidia*
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


# --- is there anything to do ---------------------------------------------------------------------------------------


def digest(stack: str) -> str:
    """Changes when an install would do something else: with the lock, or with what pyproject reports of this
    project.
    """
    import tomllib  # not in the Pythons that are refused below

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    about = [pyproject.get("project"), pyproject.get("build-system"), pyproject.get("tool", {}).get("setuptools")]
    content = (REQUIREMENTS / f"{stack}.txt").read_text() + json.dumps(about, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_stamp() -> dict[str, str]:
    """What the last complete install recorded; empty when there is none, or when the checkout was moved since."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if stamp.get("venv") == str(VENV) else {}


def is_ready(stack: str) -> bool:
    stamp = read_stamp()
    return stamp.get("stack") == stack and stamp.get("digest") == digest(stack) and venv_python_version() is not None


def venv_python_version() -> tuple[int, int] | None:
    """The Python of `.venv`; None where it does not run (its interpreter went, or the folder was moved)."""
    question = "import sys; print(sys.version_info[0], sys.version_info[1], sys.prefix)"
    command = [str(VENV / "bin" / "python"), "-c", question]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor, prefix = answer.stdout.split(maxsplit=2)
    return (int(major), int(minor)) if Path(prefix.strip()).resolve() == VENV.resolve() else None


@contextlib.contextmanager
def only_one_install() -> Iterator[None]:
    """Two targets started at once: the second waits for the first and then finds the work done."""
    LOG.parent.mkdir(exist_ok=True)
    with open(LOG.parent / "install.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- before anything is touched ------------------------------------------------------------------------------------


def missing_prerequisites(stack: str) -> list[str]:
    """One sentence for each thing this machine lacks."""
    problems = []
    version = sys.version_info[:2]
    if version not in SUPPORTED_PYTHONS:
        problems.append(
            f"Python {version[0]}.{version[1]} has no wheels of this stack: install Python 3.11 or 3.12 and name it "
            f"with "
            f"make install PYTHON=python3.11."
        )
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        problems.append(
            f"vLLM and the lock are for Linux on x86_64, this is {sys.platform} on {platform.machine()}: use such a "
            f"machine, "
            f"a container or a virtual machine."
        )
    package = f"python{version[0]}.{version[1]}"
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        problems.append(
            f"This Python cannot make environments: install {package}-venv (Debian, Ubuntu), or another Python."
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        problems.append(
            f"Python's headers are missing, and extensions are compiled: install {package}-dev (Debian, Ubuntu) or "
            f"{package}-devel (Fedora)."
        )
    if compiler() is None:
        problems.append(
            "There is no C++ compiler, and DeepSpeed compiles an extension: install one (Debian, Ubuntu: apt install "
            "build-essential; "
            "Fedora: dnf install gcc-c++), or name yours in the variable CXX."
        )
    free_gib = shutil.disk_usage(ROOT).free / 2**30
    if free_gib < NEEDED_GIB[stack]:
        problems.append(
            f"The {stack} stack needs about {NEEDED_GIB[stack]} GiB and {ROOT} has {free_gib:.1f} GiB free: free "
            f"some, or clone to a larger disk."
        )
    return problems


def compiler() -> str | None:
    """The compiler that torch will call: $CXX, else c++."""
    return shutil.which(os.environ.get("CXX", "c++"))


def make_venv(stack: str) -> None:
    """A new `.venv` where there is none, where it does not run, or where it holds the other stack."""
    found = venv_python_version()
    other_stack = read_stamp().get("stack", stack) != stack
    if found == sys.version_info[:2] and not other_stack:
        return
    # From inside an activated environment, venv would link the new Python to the one that --clear removes.
    base_python = getattr(sys, "_base_executable", sys.executable)
    step(f".venv with Python {platform.python_version()}", [base_python, "-m", "venv", "--clear", str(VENV)])


# --- where packages come from --------------------------------------------------------------------------------------


def locked_version(lock: Path, package: str) -> str:
    match = re.search(rf"^{re.escape(package)}==(\S+)", lock.read_text(), flags=re.MULTILINE)
    if match is None:
        raise InstallError(f"{lock} does not name {package}: run make lock.")
    return match[1]


def pip_settings(python: str) -> dict[str, str]:
    """pip's settings in force, from its files and variables; uv has its own and does not read these."""
    command = [python, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return parse_pip_settings(listing.stdout)


def parse_pip_settings(listing: str) -> dict[str, str]:
    """`section.key='value'` lines to {key: value}; the environment wins over [install], that over [global]."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    found: list[tuple[int, str, str]] = []
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        with contextlib.suppress(ValueError, SyntaxError):
            if section in ranks:
                found.append((ranks[section], key, str(ast.literal_eval(value))))
    return {key: value for _, key, value in sorted(found, key=lambda setting: setting[0])}


def index_environment(pip: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for uv: what pip was given about indexes, unless uv was given something itself."""
    told = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": " ".join(url for url in pip.get("extra-index-url", "").split() if not is_missing_folder(url)),
        "UV_FIND_LINKS": ",".join(place for place in pip.get("find-links", "").split() if not is_missing_folder(place)),
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
        "SSL_CERT_FILE": pip.get("cert", ""),
    }
    if told["UV_INDEX"]:
        # pip looks through all of its indexes; uv would stop at the first that knows the package.
        told["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {**{name: value for name, value in told.items() if value}, **environment, "UV_NO_PROGRESS": "1"}


def is_missing_folder(place: str) -> bool:
    """pip shrugs at a local folder that is not there, uv stops."""
    path = place.removeprefix("file://")
    return "://" not in path and not Path(path).exists()


def torch_source(dry_run: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """uv's arguments that find torch's CPU build: in a find-links folder, in the configured indexes, in PyTorch's
    own.
    """
    for source in (["--no-index"], [], ["--default-index", PYTORCH_CPU_INDEX]):
        if subprocess.run([*dry_run, *source], env=dict(environment), capture_output=True, check=False).returncode == 0:
            return source
    raise InstallError(
        f"No {dry_run[-1]} for Python {sys.version_info[0]}.{sys.version_info[1]} was found: either make "
        f"{PYTORCH_CPU_INDEX} reachable, or put "
        f"that wheel into a folder and name the folder in PIP_FIND_LINKS."
    )


def write_locks(python: str) -> None:
    """Resolve pyproject's extras into requirements/cpu.txt and gpu.txt, and docs.in into docs.txt.

    Versions already there stay if they can.
    """
    environment = index_environment(pip_settings(python), os.environ)
    uv_pip = [str(VENV / "bin" / "uv"), "pip"]
    torch = f"torch=={locked_version(REQUIREMENTS / 'cpu.txt', 'torch')}"
    dry_run = [*uv_pip, "install", "--python", python, "--reinstall", "--no-deps", "--dry-run", torch]
    from_pytorch = PYTORCH_CPU_INDEX in torch_source(dry_run, environment)
    extra = {
        "cpu": ["--overrides", str(REQUIREMENTS / "cpu-overrides.txt")]
        + (["--index", PYTORCH_CPU_INDEX, "--index-strategy", "unsafe-best-match"] if from_pytorch else []),
        "gpu": [],
    }
    for stack, arguments in extra.items():
        command = [*uv_pip, "compile", str(ROOT / "pyproject.toml"), "--extra", stack, "--extra", "dev", *arguments]
        command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "--no-annotate"]
        command += ["--custom-compile-command", "make lock", "--output-file", str(REQUIREMENTS / f"{stack}.txt")]
        step(f"requirements/{stack}.txt", command, environment=environment)
    command = [*uv_pip, "compile", str(REQUIREMENTS / "docs.in"), "--python-version", "3.11", "--no-annotate"]
    command += ["--custom-compile-command", "make lock", "--output-file", str(REQUIREMENTS / "docs.txt")]
    step("requirements/docs.txt", command, environment=environment)


# --- the extension that DeepSpeed would compile at its first start ---------------------------------------------------


def build_extension(python: str) -> None:
    """Compile it now, alone and with a deadline; several ranks compiling at once, or a killed one, end in a hang."""
    directory = extension_directory(VENV)
    stale = remove_stale_lock(directory)
    if stale is not None:
        print(f"  removed {stale}, left by a build that was killed", flush=True)
    # DeepSpeed and torch look for ninja on PATH; the environment is not activated here.
    environment = {
        **os.environ,
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str(directory.parent),
    }
    load = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load()"
    try:
        step("DeepSpeed's extension", [python, "-c", load], environment=environment, deadline_s=BUILD_DEADLINE_S)
    finally:
        remove_stale_lock(directory)  # of our own build, if it was stopped


# --- running and telling -------------------------------------------------------------------------------------------


def step(
    title: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, deadline_s: float = 3600
) -> None:
    """Run one command with its output in the log, show that it lives, and raise with a remedy when it fails."""
    with open(LOG, "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            seconds = watch(process, title, deadline_s)
        except BaseException:
            end(process)
            raise
    if process.returncode != 0:
        output = LOG.read_text(errors="replace")
        print("\n".join(output.splitlines()[-15:]), file=sys.stderr)
        raise InstallError(remedy(title, output))
    print(f"{clear_line()}  {title}: {seconds:.0f} s", flush=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop the process and what it started; asked first, because ninja then stops its compilers too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def watch(process: subprocess.Popen[bytes], title: str, deadline_s: float) -> float:
    """Wait for the process; on a terminal the line counts the seconds and shows the last word of the log."""
    start, told = time.monotonic(), 0.0
    while process.poll() is None:
        seconds = time.monotonic() - start
        if seconds > deadline_s:
            raise InstallError(
                f"{title} was not done after {deadline_s:.0f} s: see {LOG}, then run make install again."
            )
        if sys.stdout.isatty():
            print(f"{clear_line()}  {title}: {seconds:.0f} s {last_line()}", end="", flush=True)
        elif seconds - told >= 20:
            told = seconds
            print(f"  {title}: {seconds:.0f} s so far {last_line()}", flush=True)
        time.sleep(0.2)
    return time.monotonic() - start


def clear_line() -> str:
    return "\r\x1b[K" if sys.stdout.isatty() else ""


def last_line() -> str:
    lines = LOG.read_text(errors="replace").split("\n")
    return next((line.strip()[:60] for line in reversed(lines) if line.strip()), "")


def remedy(title: str, output: str) -> str:
    """One sentence for a step that failed, from what it printed."""
    if "No space left on device" in output:
        return (
            f"{title} failed because a disk is full: free some space (see df -h, and uv cache clean), then run "
            f"make install again."
        )
    if re.search(
        r"error sending request|dns error|Connection refused|Network is unreachable|Failed to fetch|NewConnectionError"
        r"|Temporary failure in name resolution|ConnectTimeout|ReadTimeout|operation timed out|tunnel error",
        output,
    ):
        return (
            f"{title} failed because the package index does not answer: check the network, or name an index that "
            f"does in pip's "
            f"settings (pip config set global.index-url URL, or PIP_INDEX_URL), then run make install again."
        )
    return f"{title} failed: the reason stands above and in {LOG}; mend it and run make install again."


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .venv from the lock of the stack that fits this machine.")
    parser.add_argument("--stack", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--force", action="store_true", help="install even where the environment matches the lock")
    parser.add_argument("--quiet", action="store_true", help="say nothing where there is nothing to do")
    parser.add_argument("--lock", action="store_true", help="resolve pyproject.toml into requirements/*.txt anew")
    arguments = parser.parse_args()
    try:
        if arguments.lock:
            write_locks(str(VENV / "bin" / "python"))
            return 0
        said = install(wanted=arguments.stack, force=arguments.force)
    except InstallError as error:
        print(f"{clear_line()}Not installed.\n  {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{clear_line()}Interrupted: run make install again, it continues.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"{clear_line()}Not installed: {error}; see that this folder is writable and has space.", file=sys.stderr)
        return 1
    if not (arguments.quiet and said.startswith("The environment is ready")):
        print(said)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
