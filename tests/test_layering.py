"""The rooms of docs/architecture.md, read from the imports: which may use which, and which file owns which library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROOMS = {
    "root": "",
    "processes": "root",
    "chat": "root",
    "config": "root chat processes",
    "algorithms": "root chat config",
    "environments": "root chat config processes",
    "data": "root chat config environments",
    "rewards": "root chat config processes",
    "runs": "root chat config processes",
    "report": "root chat config processes runs",
    "engines": "root chat config processes",
    "actors": "root chat config processes algorithms environments data rewards runs engines",
    "agents": "root chat config processes engines actors",
    "ops": "root chat config processes runs report engines",
    "training": "root chat config processes algorithms environments data rewards runs report engines actors agents ops",
    "evaluation": "root chat config processes algorithms environments data rewards runs report engines actors agents "
    "training",
    "serving": "root chat config processes algorithms environments rewards runs engines",
    "jobs": "root chat config processes algorithms environments data rewards runs report engines actors agents ops "
    "training evaluation serving",
    "doors": "root chat config jobs training evaluation",
}
"""Room -> the rooms below it, which it may import; `root` is the modules of troupe/ itself. Every list names rooms
above it alone, so there is no circle.
"""

DOORS = ("api", "cli")
"""Modules of troupe/ that stand above the jobs: the functions for Python programs and the console script."""

AT_THE_ROOT = ("actors", "rewards", "serving", "jobs")
"""Rooms that lie at the project's root and are linked into troupe/."""

LARGEST_SHARE = 0.2
"""Of the source that one room may hold."""

ADDRESSES = {
    "deepspeed": ["actors/engine.py", "actors/process_group.py", "actors/trainer_state.py"],
    "vllm": ["troupe/engines/", "actors/generator.py", "actors/weight_sync.py", "serving/"],
    "ray": ["actors/", "serving/", "troupe/ops/launching.py"],
    "wandb": ["troupe/report/trackers.py"],
    "tensorboard": ["troupe/report/trackers.py"],
    "torch.utils.tensorboard": ["troupe/report/trackers.py"],
    "boto3": ["troupe/runs/bucket.py"],
    "botocore": ["troupe/runs/"],
    "datasets": ["troupe/data/"],
    "huggingface_hub": ["troupe/runs/hub.py"],
}
"""Library -> the only files that may import it."""


def source_files() -> list[str]:
    """Every source file by its path in the project, each once: links are not followed."""
    folders = [ROOT / "troupe", *(ROOT / room for room in AT_THE_ROOT)]
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("*.py"))


def room_of(file: str) -> str:
    """The room of a file by its path (`troupe/runs/run.py`, `jobs/serve.py`), or of a dotted name."""
    parts = file.removesuffix(".py").replace(".", "/").split("/")
    if parts[0] == "troupe":
        parts = parts[1:]
    if file == "troupe/__init__.py" or (parts and parts[0] in DOORS):
        return "doors"
    return parts[0] if parts and parts[0] in ROOMS else "root"


def imported_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, at the top, inside a function, or under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here, so that they say where they point"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def upward_imports(file: str, source: str) -> list[str]:
    room = room_of(file)
    below = ROOMS[room].split()
    return [
        f"{file}:{line} imports {name}: {room} may import only {', '.join(below) or 'itself'}"
        for line, name in imported_names(source)
        if name.split(".")[0] == "troupe" and room_of(name) not in [*below, room]
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


WAITS = {"ray": ("get", "wait"), "futures": ("wait", "as_completed")}
"""What waits for other processes, and belongs into one file, where every wait has a deadline."""
WAITS_HERE = "troupe/processes/futures.py"


def waits(source: str) -> list[int]:
    """The lines that wait: `ray.get`, `ray.wait`, `concurrent.futures.wait`, however they are imported."""
    found = [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr in WAITS.get(ast.unparse(node.value).rpartition(".")[2], ())
    ]
    names = {f"{module}.{name}" for module, called in WAITS.items() for name in called}
    return found + [line for line, name in imported_names(source) if name.removeprefix("concurrent.") in names]


def test_only_one_module_waits_for_other_processes():
    found = [f"{file}:{line}" for file in source_files() for line in waits(source_of(file))]
    assert [line for line in found if not line.startswith(WAITS_HERE)] == []


def test_a_wait_is_found_however_it_is_spelt():
    assert waits("import ray\nray.get(x)\nray.wait([x])\n") == [2, 3]
    assert waits("import concurrent.futures\nconcurrent.futures.wait([])\n") == [2]
    assert waits("from concurrent.futures import Future, wait\n") == [1]
    assert waits("import asyncio, ray\nasyncio.wait([])\nray.init()\n") == []


def source_of(file: str) -> str:
    return (ROOT / file).read_text()


def test_a_room_names_only_rooms_above_it_in_the_table():
    known: list[str] = []
    for room, below in ROOMS.items():
        assert set(below.split()) <= set(known), room
        known.append(room)


def test_every_folder_is_a_room_with_a_row():
    folders = {path.name for path in (ROOT / "troupe").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS) - {"root", "doors"}
    for room in AT_THE_ROOT:
        assert (ROOT / "troupe" / room).readlink() == Path("..") / room


def test_no_room_holds_more_than_a_fifth_of_the_source():
    lines = dict.fromkeys(ROOMS, 0)
    for file in source_files():
        lines[room_of(file)] += source_of(file).count("\n")
    assert max(lines.values()) <= LARGEST_SHARE * sum(lines.values()), lines


def test_arrows_point_down():
    assert [found for file in source_files() for found in upward_imports(file, source_of(file))] == []


def test_a_heavy_library_has_one_address():
    assert [found for file in source_files() for found in misplaced_libraries(file, source_of(file))] == []


def test_only_the_worker_group_makes_ray_actors():
    uses = [f"{file}:{line}" for file in source_files() for line in remote_uses(source_of(file))]
    assert [use for use in uses if not use.startswith("actors/workers.py:")] == []


IMPORTED_LATE = {
    ("actors/frozen.py", "troupe.algorithms.reading"): "transformers reads the environment that set_up_process sets",
    ("actors/policy.py", "troupe.actors.weight_sync"): "imports vLLM, which the trainer needs only to publish",
    ("actors/trained.py", "troupe.actors.engine"): "imports DeepSpeed, which reads the environment of its rank",
    ("actors/trained.py", "troupe.actors.process_group"): "as the engine",
    ("jobs/evaluate.py", "troupe.evaluation.evaluation_tables"): "pandas, after --help and mistakes in the recipe",
    ("jobs/export.py", "troupe.actors.exported"): "torch and transformers, after --help and mistakes in the recipe",
    ("jobs/serve.py", "troupe.serving.endpoint"): "Ray Serve, after --help and mistakes in the recipe",
    ("jobs/serve.py", "troupe.serving.ingress"): "FastAPI, as above",
    ("rewards/build.py", "troupe.rewards.apart"): "the processes of rewards, after --help and mistakes in the recipe",
    ("rewards/build.py", "troupe.rewards.calls"): "as above",
    ("serving/scorer.py", "troupe.algorithms.reading"): "transformers reads the environment that set_up_process sets",
    ("serving/scorer.py", "troupe.algorithms.packing"): "torch, which scorers of functions do without",
    ("troupe/config/loader.py", "troupe.config.help"): "only for --help",
    ("troupe/config/loader.py", "troupe.config.mistakes"): "only where something is wrong with a recipe",
    ("troupe/config/program.py", "troupe.config.memory_estimate"): "only for a dry run",
    ("troupe/data/__init__.py", "troupe.data.preference_pairs"): "when data are read, after --help and mistakes",
    ("troupe/engines/trial.py", "troupe.config.models"): "only the child needs pydantic; the doctor runs without it",
    ("troupe/engines/trial.py", "troupe.engines.arguments"): "as the config",
    ("troupe/ops/doctor.py", "troupe.engines.trial"): "the doctor reports what is missing, and runs without it",
    ("troupe/report/observers.py", "troupe.report.trackers"): "only where a config names one",
    ("troupe/report/observers.py", "troupe.report.report"): "jinja2 and the charts, at the end of a run",
    ("troupe/runs/model_paths.py", "troupe.runs.adapter_merge"): "only where the model is an adapter, which is rare",
    ("troupe/runs/model_paths.py", "troupe.runs.gguf_files"): "only where the model is such a file",
    ("troupe/training/preparation.py", "troupe.training.scratch"): "only where the model is made",
    ("troupe/training/fitting.py", "troupe.actors.adapters"): "torch and peft, where it is not remembered",
    ("troupe/training/fitting.py", "troupe.algorithms.forward_paths"): "as the adapters",
}
"""(file, module of ours) that is imported inside a function, and why; everything else is imported at the top."""


def late_imports(file: str, source: str) -> set[tuple[str, str]]:
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inside = [node for function in functions for node in ast.walk(function)]
    modules = [node.module for node in inside if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in inside if isinstance(node, ast.Import) for alias in node.names]
    return {(file, module) for module in modules if module and module.split(".")[0] == "troupe"}


def test_our_own_modules_are_imported_at_the_top_save_those_with_a_reason():
    found = set().union(*(late_imports(file, source_of(file)) for file in source_files()))
    assert found == set(IMPORTED_LATE)


LIGHT = ("root", "processes", "config", "runs", "report", "engines", "ops")


def test_the_light_rooms_import_without_ray_deepspeed_vllm_and_torch():
    """The doctor and every `--dry-run` must work where the stack is broken, and start in less than torch's two
    seconds.
    """
    files = [file for file in source_files() if room_of(file) in LIGHT and file != "troupe/engines/worker.py"]
    modules = [
        file.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") for file in files
    ]  # vLLM alone imports its worker
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
        ("troupe/config/loader.py", "from troupe.algorithms.losses import policy_loss"),
        ("rewards/judge.py", "def score():\n    import troupe.data.gsm8k"),
        ("actors/policy.py", "from troupe.serving import app"),
        ("serving/app.py", "import troupe.actors.engine as engine"),
        ("troupe/data/gsm8k.py", "if TYPE_CHECKING:\n    from troupe.jobs import train_grpo"),
    ],
)
def test_an_upward_import_is_found(file, source):
    assert len(upward_imports(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("actors/policy.py", "import deepspeed.ops"),
        ("actors/engine.py", "from vllm import LLM"),
        ("troupe/algorithms/packing.py", "import ray"),
        ("actors/policy.py", "import wandb"),
        ("troupe/runs/run_directory.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("troupe/training/rollouts.py", "from datasets import load_dataset"),
    ],
)
def test_a_library_at_a_second_address_is_found(file, source):
    assert len(misplaced_libraries(file, source)) == 1


def test_a_ray_actor_is_found_however_it_is_spelt():
    assert remote_uses("import ray\n\n@ray.remote\nclass A: ...\n") == [3]
    assert remote_uses("import ray\nB = ray.remote(num_cpus=1)(A)\n") == [2]
    assert remote_uses("from ray import remote\n") == [1]
    assert remote_uses("worker.call.remote(1)\n") == []  # calling an actor is not making one
