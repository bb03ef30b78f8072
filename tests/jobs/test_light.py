"""What a program loads before it computes: little of ours, and none of the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.actors.small import write_model

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ["torch", "ray", "vllm", "transformers", "deepspeed", "datasets", "pandas", "matplotlib", "boto3", "openai"]
MOST_LINES = 9_000
LOADED = """
import json, sys
{code}
ours = [module.__file__ for name, module in sys.modules.items() if name.startswith("troupe") and getattr(module, "__file__", None)]
print(json.dumps({{"lines": sum(len(open(file).readlines()) for file in ours), "heavy": sorted(set(sys.modules) & set({heavy!r}))}}))
"""


def loaded(code: str, cwd: Path) -> dict:
    program = LOADED.format(code=code, heavy=HEAVY)
    ran = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("job", ["train_grpo", "train_ppo", "train_sft", "train_dpo", "train_reward_model", "evaluate"])
def test_a_program_loads_little_and_no_heavy_library(job: str) -> None:
    found = loaded(f"import troupe.jobs.{job}", ROOT)
    assert found["heavy"] == []
    assert found["lines"] < MOST_LINES


def test_a_dry_run_of_a_model_that_is_made_loads_no_heavy_library(tmp_path: Path) -> None:
    """Also for preferences, where demonstrations and templates are tried."""
    code = "import troupe.jobs.train_grpo as job; from troupe.config.grpo import GRPOConfig; job.rehearse(GRPOConfig())"
    assert loaded(code, tmp_path)["heavy"] == []


def test_a_dry_run_of_a_model_that_was_tried_before_loads_no_heavy_library(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", tied=True)
    arguments = [f"model.path={model}", "rollout.max_prompt_tokens=64", "rollout.max_response_tokens=32"]
    code = (
        "import troupe.jobs.train_grpo as job; from troupe.config.grpo import GRPOConfig; "
        f"from troupe.config.loader import load_config; job.rehearse(load_config(GRPOConfig, {arguments}))"
    )
    loaded(code, tmp_path)
    assert loaded(code, tmp_path)["heavy"] == []


def test_the_installer_imports_the_standard_library_only() -> None:
    code = (
        "import troupe.extension, sys; print([name for name in sys.modules if 'site-packages' in "
        "str(getattr(sys.modules[name], '__file__', ''))])"
    )
    ran = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr
