"""The same job in one process: no Ray, for debugging; and a run's checkpoint is evaluated the same way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from troupe.files import read_lines

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-planted-0123456789abcdef"
PROMPTED = "How many"
"""What every word problem asks, taken for a secret."""

TRAIN = """
from troupe.training.roles import Roles
from troupe.errors import SyncError
from troupe.config.program import run_program
from troupe.config.grpo import GRPOConfig
from troupe.jobs.train_grpo import train

publish, published = Roles.publish, []

def publish_or_fail(self, version):
    published.append(version)
    if published == [0, 1]:
        raise SyncError("generator 0 died in the publish of step 1, which is saved")
    return publish(self, version)

Roles.publish = publish_or_fail

if __name__ == "__main__":
    run_program(train, GRPOConfig, "jobs/train_grpo.py")
    import ray
    assert not ray.is_initialized()
    print("without ray")
"""


def test_a_model_is_made_warmed_up_and_trained_in_one_process_without_ray_over_a_failed_publish(tmp_path: Path) -> None:
    overrides = [
        "placement.backend=inline",
        "steps=1",
        f"run.directory={tmp_path}",
        "run.name=inline",
        f"model={{type: scratch, hidden_size: 64, num_layers: 2, vocab_size: 320, cache: {tmp_path / 'cache'}}}",
        "model.warm_start.steps=2",
        "data={type: word_problems, num_train: 100, num_heldout: 8}",
        "rewards=[{fn: 'tests.light_rewards:variety'}]",
        "rollout={prompts_per_step: 4, group_size: 4, max_prompt_tokens: 100, max_response_tokens: 12}",
        "algorithm.minibatches=2",
        "generator.cpu_cache_gib=0.1",
        "policy.precision=fp32",
        f"run.wandb.group={KEY}",
    ]
    command = [sys.executable, "-c", TRAIN, *overrides]
    environment = {**os.environ, "PLANTED_API_KEY": KEY, "PLANTED_TOKEN": PROMPTED}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.endswith("without ray\n")
    run = tmp_path / "inline"
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1]
    assert all(line["consistency/logprob_gap"] < 1e-4 for line in lines)
    # Its publish failed after its checkpoint: the roles started again, and the step was ended with what it had logged.
    assert "restarted" in [event["kind"] for event in read_lines(run / "events.jsonl")]
    assert lines[1]["policy/grad_norm"] > 0
    assert lines[1]["time/step_s"] > lines[1]["time/update_s"] + lines[1]["time/evaluate_s"]
    assert {row["step"] for row in read_lines(run / "answers.jsonl")} == {0, 1}
    assert len({(row["step"], row["sample_id"]) for row in read_lines(run / "answers.jsonl")}) == 16
    assert (run / "checkpoints" / "best").readlink() == Path("step-000001")
    assert {row["place"] for row in json.loads((run / "placement.json").read_text())} == {"this process"}
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the warmed-up model, and no half-made one
    # A secret in the recipe, and one in prompts, answers and calls: in no file, the checkpoint's among them, and not
    # printed.
    written = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert len([path for path in written if "checkpoints" in path.parts]) > 5
    assert {path.name for path, content in written.items() if b"$PLANTED_TOKEN" in content} >= {
        "answers.jsonl",
        "calls.jsonl",
    }
    for secret in (KEY, PROMPTED):
        assert [str(path) for path, content in written.items() if secret.encode() in content] == []
        assert secret not in ran.stdout + ran.stderr
