"""The image and the dev container, as far as they can be judged without a container engine: what they copy, name and
leave out.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.test_layering import AT_THE_ROOT

ROOT = Path(__file__).resolve().parents[1]
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()


def copied(lines: list[str]) -> dict[str, str]:
    """What `COPY` brings -> where to."""
    found = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    return {source: words[-1] for words in found for source in words[:-1]}


def test_the_image_holds_the_project_and_its_environment() -> None:
    sources = copied(LINES)
    assert {"troupe", *AT_THE_ROOT, "configs", "requirements", "Makefile", "pyproject.toml", "install.py"} <= set(
        sources
    )
    assert all((ROOT / name).exists() for name in sources)
    assert "ENV PATH=/opt/troupe/.venv/bin:$PATH PYTHONPATH=/opt/troupe" in LINES


def test_packages_are_installed_before_the_sources_come_from_what_the_installer_reads() -> None:
    """Each target of the links in troupe/ comes with the sources; the installer needs none of them."""
    (install,) = [number for number, line in enumerate(LINES) if line.startswith("RUN make install STACK=${STACK}")]
    early = {source for source in copied(LINES[:install]) if source.startswith("troupe")}
    imported = re.findall(r"from (troupe\.\w+) import", (ROOT / "install.py").read_text())
    needed = {f"{name.replace('.', '/')}.py" for name in [*imported, "troupe.__init__"]}
    assert needed <= early
    for file in early:
        inner = re.findall(r"^from (troupe\.\w+) import", (ROOT / file).read_text(), flags=re.MULTILINE)
        assert {f"{name.replace('.', '/')}.py" for name in inner} <= early, file


def test_the_python_of_the_image_is_one_that_the_project_takes() -> None:
    (version,) = {match[1] for line in LINES if (match := re.match(r"FROM python:(\d+\.\d+)-", line))}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = re.fullmatch(r">=(\d+\.\d+),<(\d+\.\d+)", wanted).groups()  # type: ignore[union-attr]
    assert [int(part) for part in low.split(".")] <= [int(part) for part in version.split(".")]
    assert [int(part) for part in version.split(".")] < [int(part) for part in high.split(".")]


@pytest.mark.parametrize("path", [".env", ".git", ".venv", "runs", ".cache", "troupe/__pycache__"])
def test_nothing_secret_or_made_here_is_sent_to_the_builder(path: str) -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def test_no_tracked_file_that_the_image_copies_is_left_out_on_the_way() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = [file for file in tracked if file.split("/")[0] in copied(LINES)]
    assert wanted
    assert [file for file in wanted if any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []


def test_the_dev_container_is_a_stage_of_the_image_and_installs_as_everybody_does() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    build = container["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (ROOT / ".devcontainer" / build["context"]).resolve() == ROOT
    assert any(re.fullmatch(rf"FROM \S+ AS {build['target']}", line) for line in LINES)
    target = container["postCreateCommand"].split()[1]
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
