"""Measure how much memory a run takes beyond what its model needs: GRPO on a model of 1 M parameters, then a real one.

python benchmarks/memory.py                      # .cache/models/smollm2-135m-instruct, a minute each
python benchmarks/memory.py --model DIRECTORY

The peak of the real model's processes stands beside the peak of the small one's plus what the real one has to have:
weights, gradients and optimizer of the policy, the activations of one row, the engine's weights and its KV cache.
Memory that processes share counts once (PSS). Results go to benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from troupe.config.grpo import GRPOConfig  # noqa: E402  (not installed everywhere)
from troupe.config.loader import load_config  # noqa: E402
from troupe.config.memory_estimate import shape_of, state_bytes, working_bytes  # noqa: E402
from troupe.runs.model_paths import SMOLLM2  # noqa: E402

EVERY_S = 0.3
SHAPE = [
    "data.type=word_problems",
    "rewards=[{fn: math_answer, args: {strict: false}}]",
    "evaluation.every=0",
    "rollout.prompts_per_step=4",
    "rollout.group_size=8",
    "rollout.max_prompt_tokens=128",
    "rollout.max_response_tokens=64",
    "algorithm.minibatches=1",
    "policy.precision=bf16",
    "policy.zero_stage=1",
    "policy.learning_rate=1e-6",
    "run.name=memory",
]


def peak(settings: list[str], directory: Path) -> dict[str, float]:
    """Return the largest sum of PSS of a job's processes in GB, and each kind of process at that moment."""
    command = [sys.executable, str(ROOT / "jobs" / "train_grpo.py"), *SHAPE, *settings, f"run.directory={directory}"]
    with (directory / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        found: dict[str, float] = {}
        ended = threading.Event()
        while not ended.wait(EVERY_S):
            now = memory_of(job.pid)
            found = max(found, now, key=lambda sizes: sum(sizes.values()))
            if job.poll() is not None:
                ended.set()
    if job.returncode != 0:
        raise SystemExit(f"the job ended with {job.returncode}:\n{(directory / 'log').read_text()[-2000:]}")
    return found


def memory_of(pid: int) -> dict[str, float]:
    """Return GB of PSS of a process and its descendants, by the first word of what they call themselves."""
    sizes: dict[str, float] = {}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return sizes
    for process in processes:
        try:
            title, size = process.cmdline()[0], process.memory_full_info().pss / 1e9
        except (psutil.Error, IndexError):
            continue
        kind = title.split(".")[0] if title.startswith(("ray::", "VLLM::")) else "others"
        sizes[kind] = sizes.get(kind, 0.0) + size
    return sizes


def needed(model: str, rows: int) -> dict[str, float]:
    """Return GB that the model needs beyond the small one's run, by what holds it."""
    config, shape = load_config(GRPOConfig, [*SHAPE, f"policy.row_tokens={rows}"]), shape_of(model)
    assert shape is not None
    tokens = config.rollout.branches_per_step * (config.rollout.max_prompt_tokens + config.rollout.max_response_tokens)
    return {
        "weights, gradients, optimizer": state_bytes(shape, config.policy) / 1e9,
        "activations of a row": working_bytes(shape, config.policy) / 1e9,
        "the engine's weights": 2 * shape.parameters / 1e9,
        "the engine's KV cache": tokens * shape.cache_bytes() / 1e9,
    }


def main() -> None:
    """Measure both, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "memory.json"))
    given = parser.parse_args()
    models = {"small": ["model.type=scratch", "model.warm_start.steps=0"], "real": [f"model.path={given.model}"]}
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = {}
        for name, settings in models.items():
            (Path(scratch) / name).mkdir()
            found[name] = peak([*settings, f"steps={given.steps}"], Path(scratch) / name)
            print(f"{name}: {sum(found[name].values()):.2f} GB", flush=True)
    found["needed"] = needed(given.model, rows=2560)
    allowed = sum(found["small"].values()) + sum(found["needed"].values())
    found["ratio"] = sum(found["real"].values()) / allowed
    print(json.dumps(found, indent=1))
    Path(given.output).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
