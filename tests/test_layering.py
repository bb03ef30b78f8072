"""The arrows of docs/architecture.md, read from the imports: who may use whom, and which file owns which library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT = {
    "core": set(),
    "algorithms": {"core"},
    "data": {"core"},
    "rewards": {"core"},
    "environments": {"core"},
    "actors": {"core", "algorithms", "data", "rewards", "environments"},
    "serving": {"core", "algorithms", "data", "rewards"},
    "jobs": {"core", "algorithms", "data", "rewards", "environments", "actors", "serving"},
}
"""Package -> the packages below it. actors and serving never meet; rewards, environments, data and algorithms neither."""

ADDRESSES = {
    "deepspeed": ["actors/engine.py", "actors/process_group.py", "actors/trainer_state.py"],
    "vllm": [
        "core/engine_arguments.py",
        "core/engine_process.py",
        "core/engine_worker.py",
        "core/engine_trial.py",
        "actors/generator.py",
        "actors/weight_sync.py",
        "serving/",
    ],
    "ray": ["actors/", "serving/"],
    "wandb": ["core/tracking.py"],
    "tensorboard": ["core/tracking.py"],
    "torch.utils.tensorboard": ["core/tracking.py"],
    "boto3": ["core/"],
    "botocore": ["core/"],
    "datasets": ["data/"],
    "huggingface_hub": ["core/hub.py"],
}
"""Library -> the only files that may import it."""


def source_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, at the top, inside a function, or under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here, so that they say where they point"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def upward_imports(file: str, source: str) -> list[str]:
    package = file.split("/")[0]
    return [
        f"{file}:{line} imports {name}: {package} may import only {', '.join(sorted(MAY_IMPORT[package])) or 'itself'}"
        for line, name in imported_names(source)
        if (target := name.split(".")[0]) in MAY_IMPORT and target not in MAY_IMPORT[package] | {package}
    ]


def misplaced_libraries(file: str, source: str) -> list[str]:
    return [
        f"{file}:{line} imports {name}: {library} is imported only in {', '.join(addresses)}"
        for line, name in imported_names(source)
        for library, addresses in ADDRESSES.items()
        if (name == library or name.startswith(f"{library}."))
        and not any(file == address or (address.endswith("/") and file.startswith(address)) for address in addresses)
    ]


def remote_uses(source: str) -> list[int]:
    """The lines that turn something into a Ray actor or task: `ray.remote`, however it is spelt."""
    tree = ast.parse(source)
    attributes = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "remote"
        and isinstance(node.value, ast.Name)
        and node.value.id == "ray"
    ]
    return attributes + [line for line, name in imported_names(source) if name == "ray.remote"]


def source_of(file: str) -> str:
    return (ROOT / file).read_text()


def test_arrows_point_down():
    assert [found for file in source_files() for found in upward_imports(file, source_of(file))] == []


def test_a_heavy_library_has_one_address():
    assert [found for file in source_files() for found in misplaced_libraries(file, source_of(file))] == []


def test_only_the_worker_group_makes_ray_actors():
    uses = [f"{file}:{line}" for file in source_files() for line in remote_uses(source_of(file))]
    assert [use for use in uses if not use.startswith("actors/group.py:")] == []


def test_core_imports_without_ray_deepspeed_vllm_and_torch():
    """The doctor and every `--dry-run` must work where the stack is broken, and start in less than torch's two seconds."""
    files = [file for file in source_files() if file.startswith("core/") and file != "core/engine_worker.py"]
    modules = [file.removesuffix(".py").replace("/", ".") for file in files]  # vLLM alone imports its worker
    program = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"ray", "deepspeed", "vllm", "torch"}}:
            raise ModuleNotFoundError(f"{{name}} is absent in this test", name=name)

sys.meta_path.insert(0, Absent())
for module in {modules!r}:
    importlib.import_module(module)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


# The rules are only worth something if they catch what they forbid.


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/config.py", "from algorithms.losses import policy_loss"),
        ("rewards/judge.py", "def score():\n    import data.gsm8k"),
        ("actors/policy.py", "from serving import app"),
        ("serving/app.py", "import actors.engine as engine"),
        ("data/gsm8k.py", "if TYPE_CHECKING:\n    from jobs import train_grpo"),
    ],
)
def test_an_upward_import_is_found(file, source):
    assert len(upward_imports(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("actors/policy.py", "import deepspeed.ops"),
        ("actors/engine.py", "from vllm import LLM"),
        ("algorithms/packing.py", "import ray"),
        ("actors/policy.py", "import wandb"),
        ("core/run_directory.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("actors/rollouts.py", "from datasets import load_dataset"),
    ],
)
def test_a_library_at_a_second_address_is_found(file, source):
    assert len(misplaced_libraries(file, source)) == 1


def test_a_ray_actor_is_found_however_it_is_spelt():
    assert remote_uses("import ray\n\n@ray.remote\nclass A: ...\n") == [3]
    assert remote_uses("import ray\nB = ray.remote(num_cpus=1)(A)\n") == [2]
    assert remote_uses("from ray import remote\n") == [1]
    assert remote_uses("worker.call.remote(1)\n") == []  # calling an actor is not making one
