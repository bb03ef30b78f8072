"""One importable name: the wheel, a user's own modules beside it, names of earlier versions, and Troupe from Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.actors.small import write_model

ROOT = Path(__file__).resolve().parents[1]
ANSWER = '{"prompt": "2+2?", "answer": "#### 4", "gold": "4"}\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built in a copy of what a checkout holds."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("troupe", "actors", "rewards", "serving", "jobs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "install.py"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", ".", "-w", "dist"]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    (file,) = (copy / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder of installed packages that holds the wheel's content."""
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(*command: str, folder: Path, path: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def test_the_wheel_holds_one_name_and_the_jobs_with_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"troupe"}
    sources = {
        "/".join(["troupe", *path.relative_to(ROOT / "troupe").parts])
        for pattern in ("*.py", "*/*.py")
        for path in (ROOT / "troupe").glob(pattern)
    }
    assert sources <= set(names)
    assert {"troupe/jobs/train_grpo.py", "troupe/actors/engine.py", "troupe/serving/playground.js"} <= set(names)
    assert {"troupe/style.css", "troupe/py.typed"} <= set(names)


def test_an_installed_wheel_works_in_a_folder_with_packages_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    """Also in vLLM's process, which imports our worker by its name."""
    for name in ("core", "data", "actors", "rewards", "serving", "jobs", "config"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    where = run(sys.executable, "-c", "import troupe; print(troupe.__file__)", folder=tmp_path, path=installed)
    assert where.stdout.startswith(str(installed)), where.stderr
    asked = run(sys.executable, "-m", "troupe.cli", "train", "grpo", "--help", folder=tmp_path, path=installed)
    assert asked.returncode == 0, asked.stderr
    tried = run(sys.executable, "-m", "troupe.engines.trial", "fp32", folder=tmp_path, path=installed, timeout=400)
    assert tried.returncode == 0, tried.stderr[-2000:]


def test_a_users_rewards_py_and_its_own_data_package_are_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "loader.py").write_text("WORTH = 0.25\n")
    (tmp_path / "rewards.py").write_text(
        "from data.loader import WORTH\n\n\ndef mine(sample, branch):\n    return WORTH\n"
    )
    (tmp_path / "a.jsonl").write_text(ANSWER)
    scored = run(
        sys.executable, str(ROOT / "jobs/score.py"), "file=a.jsonl", "rewards=[{fn: 'rewards:mine'}]", folder=tmp_path
    )
    assert scored.returncode == 0, scored.stderr
    assert '"score": 0.25' in (tmp_path / "a.scored.jsonl").read_text()


@pytest.mark.parametrize(
    ("line", "now"),
    [
        ("from core.records import Sample", "troupe.records"),
        ("from core.recipes import GRPOConfig", "docs/architecture.md"),
        ("import rewards.answers", "troupe.rewards.answers"),
    ],
)
def test_an_import_of_a_name_of_before_ends_in_one_sentence_with_the_new_one(
    tmp_path: Path, line: str, now: str
) -> None:
    (tmp_path / "mine.py").write_text(f"{line}\n\n\ndef f(sample, branch):\n    return 1.0\n")
    (tmp_path / "a.jsonl").write_text(ANSWER)
    scored = run(
        sys.executable, str(ROOT / "jobs/score.py"), "file=a.jsonl", "rewards=[{fn: 'mine:f'}]", folder=tmp_path
    )
    assert scored.returncode == 2
    (sentence,) = scored.stderr.strip().splitlines()
    assert line.split()[1] in sentence
    assert now in sentence


def test_an_address_that_a_config_of_before_names_is_still_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ANSWER)
    scored = run(
        sys.executable, "-m", "troupe.cli", "score", "file=a.jsonl", "rewards=[{fn: 'rewards.form:Length', args: " "{limit: " "9, " "unit: " "chars}}]",
        folder=tmp_path,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr


def test_the_console_script_lists_its_commands_and_refuses_others(tmp_path: Path) -> None:
    listed = run(sys.executable, "-m", "troupe.cli", folder=tmp_path)
    assert listed.returncode == 0
    assert all((ROOT / "jobs" / f"{path.stem}.py").is_file() for path in (ROOT / "jobs").glob("*.py"))
    assert "train grpo" in listed.stdout
    one = run(sys.executable, "-m", "troupe.cli", "train", "grpo", "--help", folder=tmp_path)
    assert one.stdout.startswith("usage: troupe train grpo ")
    wrong = run(sys.executable, "-m", "troupe.cli", "trian", "grpo", folder=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: there is no command 'trian grpo'")


PROGRAM = """
import troupe

config = troupe.load_config(
    "grpo", "model={type: pretrained, path: model}", "data={type: word_problems, num_train: 40, num_heldout: 4}",
    "steps=2", "run.name=ten-lines", "placement.backend=inline", "policy.precision=fp32", "generator.cpu_cache_gib=0.1",
    "rollout={prompts_per_step: 4, group_size: 4, max_prompt_tokens: 100, max_response_tokens: 12}",
)

def distinct(sample, branch):
    return len(set(branch.token_ids)) / 12

if __name__ == "__main__":
    result = troupe.train(config, rewards=[distinct])
    print(result.checkpoint.name, len(result.metrics), *result.heldout, result.metrics[-1]["reward/distinct"] > 0)
"""


def test_ten_lines_of_python_train_with_a_reward_that_is_a_function(tmp_path: Path) -> None:
    write_model(tmp_path / "model", tied=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    ran = run(sys.executable, "program.py", folder=tmp_path, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    last = ran.stdout.strip().splitlines()[-1]
    assert last.startswith("step-00000")
    assert last.endswith("True")
    assert " 3 eval/word_problems/" in last
    assert "fn: __main__:distinct" in (tmp_path / "runs/ten-lines/config.yaml").read_text()
