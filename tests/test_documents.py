"""What documents and help texts name exists: every field, every command line, every block of code."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.job_configs import JOB_CONFIGS
from troupe.config.fields import dotted_fields, sections_of, type_at
from troupe.config.help import help_text
from troupe.config.loader import load_config, wanted_help
from troupe.config.serve import with_sources
from troupe.config.yaml_text import read_yaml
from troupe.errors import ConfigError
from troupe.jobs import doctor, launch, report, runs, watch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
PARSERS = {module.__name__.rpartition(".")[2]: module.parser for module in (doctor, launch, report, runs, watch)}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block in this language; "" for those in none."""
    return [
        (page.name, found[2]) for page in PAGES for found in BLOCK.finditer(page.read_text()) if found[1] == language
    ]


# -- command lines
# ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """(place, command line) of every `python jobs/x.py ...` in pages, jobs' docstrings and recipes' comments."""
    texts = [(page, text) for language in ("", "bash", "sh") for page, text in blocks(language)]
    texts += [(str(file.relative_to(ROOT)), file.read_text().split('"""')[1]) for file in (ROOT / "jobs").glob("*.py")]
    for place, text in texts:
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            found = re.search(r"python (jobs/\w+\.py.*)", line)
            # A usage line has parts that may be left out or filled in.
            if found and not re.search(
                r"\[\w+\.yaml|\[section|\[data\.|\[stages| \.\.\.| \| |\[JOB\]|\[s3|\[runs|<|\[--|\{,", found[1]
            ):
                yield place, found[1]
    for recipe in RECIPES:
        for found in re.finditer(r"python (jobs/\w+\.py[^`\n]*)`", recipe.read_text()):
            yield str(recipe.relative_to(ROOT)), found[1]


COMMANDS = list(commands())


@pytest.mark.parametrize(
    ("place", "command"), COMMANDS, ids=[f"{place}: {command[:60]}" for place, command in COMMANDS]
)
def test_a_command_of_a_document_is_one_that_its_job_takes(
    place: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    check([os.path.expandvars(word) for word in shlex.split(command, comments=True) if word not in ("&", "|")])


def check(words: list[str]) -> None:
    job, arguments = Path(words[0]).stem, words[1:]
    assert Path(words[0]).is_file()
    if job in PARSERS:
        if job == "launch" and "--" in arguments:
            own = arguments.index("--")
            check(arguments[own + 2 :])
            arguments = arguments[:own]
        parse(PARSERS[job](), arguments, job)
        return
    config = JOB_CONFIGS[job]
    topic = wanted_help(arguments)
    if topic is not None:
        assert help_text(config, f"jobs/{job}.py", topic)
        return
    arguments = [word for word in arguments if word != "--dry-run"]
    arguments = with_sources(arguments) if job == "serve" else arguments
    # Files of the reader's own are not here: my_recipe.yaml, runs/x/config.yaml.
    load_config(
        config, [word for word in arguments if not word.endswith((".yaml", ".yml")) or word.startswith("configs/")]
    )


def parse(parser: argparse.ArgumentParser, arguments: list[str], job: str) -> None:
    _, rest = parser.parse_known_args([word for word in arguments if word not in ("<", "/dev/null")])
    assert all("=" in word for word in rest) if job == "runs" else rest == []


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 90


# -- names of fields
# ----------------------------------------------------------------------------------------------------

CLASSES = {*JOB_CONFIGS.values()} | {
    section
    for config in JOB_CONFIGS.values()
    for _, info in dotted_fields(config)
    for section in sections_of(info.annotation)
}
SECTIONS = {name for cls in CLASSES for name, info in cls.model_fields.items() if sections_of(info.annotation)}
DOTTED = re.compile(r"(?<![\w./@-])([a-z_]+(?:\.[a-z_]+)+)(?![\w/(@-]|\.\w|:[A-Za-z])")
FILE = re.compile(r"\.(jsonl?|ya?ml|py|md|html|csv|txt|svg|png|safetensors|log|pid|lock|sqlite|parquet)$")


def is_field(cls: Any, name: str) -> bool:
    """Whether a dotted name, or what a name of the reader's own stands for, is found from this section on."""
    for part in name.split("."):
        cls = Any if cls is Any else type_at(cls, part)
    return cls is not None


def unknown_fields(text: str) -> list[str]:
    """Dotted names that begin with a section's name and that no section has."""
    found = []
    for name in DOTTED.findall(text):
        head = name.partition(".")[0]
        is_module = (
            Path(ROOT, *name.split(".")[:2]).with_suffix(".py").exists() or Path(ROOT, *name.split(".")).exists()
        )
        if head in SECTIONS and not FILE.search(name) and not is_module:
            found += [] if any(is_field(cls, name) for cls in CLASSES) else [name]
    return found


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_field_that_a_document_names_exists(page: Path) -> None:
    assert unknown_fields(page.read_text()) == []


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_every_field_that_a_help_text_names_exists(job: str) -> None:
    assert unknown_fields(help_text(JOB_CONFIGS[job], f"jobs/{job}.py", "all")) == []
    assert unknown_fields("`{policy.optimizer.learning_rate: 1e-5}`") == ["policy.optimizer.learning_rate"]


# -- code
# -----------------------------------------------------------------------------------------------------------------


def test_python_in_documents_is_written_as_ours_is(tmp_path: Path) -> None:
    for number, (page, code) in enumerate(blocks("python")):
        (tmp_path / f"{Path(page).stem}_{number}.py").write_text(code)
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    # Parts of files: names, and returns, belong to what stands around them.
    lint = subprocess.run(
        [*ruff, "check", *config, "--ignore=F821,F706,F401,I001,RUF012", str(tmp_path)], capture_output=True, text=True
    )
    assert lint.returncode == 0, lint.stdout
    form = subprocess.run(
        [*ruff, "format", "--check", "--diff", *config, str(tmp_path)], capture_output=True, text=True
    )
    assert form.returncode == 0, form.stdout + form.stderr


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_a_recipe_in_a_document_has_no_key_that_its_job_lacks(page: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    names = read_yaml(text)
    if not any(name in config.model_fields for config in JOB_CONFIGS.values() for name in names):
        pytest.skip("another program's")
    mistakes = []
    for config in JOB_CONFIGS.values():
        try:
            load_config(config, [str(file)])
            return
        except ConfigError as error:
            mistakes.append(str(error))
    assert any("unknown key" not in told for told in mistakes), mistakes
