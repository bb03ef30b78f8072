"""PPO as a real job: policy, critic, reference, reward model and engines together, and a resume that takes all of it
up again.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.actors.small import write_model
from tests.actors.test_values import write_scalar_model
from troupe.config.grpo import PPOConfig
from troupe.config.loader import load_config
from troupe.files import read_lines
from troupe.jobs.train_grpo import prepare_models, train
from troupe.runs.checkpoint import CheckpointStore

pytestmark = pytest.mark.usefixtures("cluster")

COEF = 0.05


def recipe(directory: Path, *, steps: int) -> PPOConfig:
    return PPOConfig(
        steps=steps,
        run={"name": "ppo", "directory": str(directory)},
        model={"type": "pretrained", "path": str(directory / "model")},
        data={"type": "word_problems", "num_train": 40, "num_heldout": 4},
        rewards=[{"fn": "tests.light_rewards:variety"}],
        reward_model={"path": str(directory / "reward_model"), "weight": 0.5, "relative_to_reference": True},
        rollout={"prompts_per_step": 4, "group_size": 2, "max_prompt_tokens": 100, "max_response_tokens": 8},
        algorithm={
            "advantage": "gae",
            "epochs": 2,
            "minibatches": 2,
            "score_clip": 3.0,
            # A target that is never reached: the coefficient falls by a fifth of a tenth at every step.
            "kl": {"coef": COEF, "placement": "reward", "adaptive": {"target": 1e6}},
        },
        policy={"precision": "fp32", "learning_rate": 1e-3, "schedule": "constant", "frozen_layers": 0.5},
        reference={"source": "shared_trunk"},
        critic={"precision": "fp32", "learning_rate": 1e-3, "schedule": "constant", "start": "reward_model"},
        generator={"cpu_cache_gib": 0.1},
        evaluation={"every": 0, "metrics": [{"fn": "tests.light_rewards:variety"}]},
        checkpoint={"every": 0, "keep_last": 2},
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy's model, a reward model with the same tokenizer, and a run of two steps that was resumed for a
    third.
    """
    path = tmp_path_factory.mktemp("ppo")
    write_model(path / "model", tied=True)
    write_model(path / "reward_model", tied=True, seed=1)
    write_scalar_model(AutoConfig.from_pretrained(path / "reward_model"), path / "reward_model", score_mean=0.5)
    train(recipe(path, steps=2))
    train(recipe(path, steps=3))
    return path


def critic_at(directory: Path, step: int) -> torch.Tensor:
    weights = load_file(directory / "ppo" / "checkpoints" / f"step-{step:06d}" / "critic" / "model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def test_every_role_has_its_place_and_every_step_its_metrics(directory: Path) -> None:
    placed = {row["role"] for row in json.loads((directory / "ppo" / "placement.json").read_text())}
    assert placed == {"policy", "critic", "generator", "reward_model"}
    lines = read_lines(directory / "ppo" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines[1:]:
        value = {"loss", "grad_norm", "mean", "error", "clip_fraction", "explained_variance", "return", "learning_rate"}
        policy = {"loss", "grad_norm", "kl", "clip_fraction", "advantage_max", "entropy"}
        assert {f"value/{name}" for name in value} | {f"policy/{name}" for name in policy} <= line.keys()
        assert line["value/grad_norm"] > 0
        assert line["policy/grad_norm"] > 0
        assert {"reward/shaped", "reward/clipped_fraction", "time/values_s", "time/critic_update_s"} <= line.keys()
        assert line["consistency/logprob_gap"] < 1e-4
    assert "eval/word_problems/reward_model" in lines[-1]


def test_an_answer_is_judged_by_the_function_and_by_how_far_it_beats_the_reference(directory: Path) -> None:
    branches = [branch for line in read_lines(directory / "ppo" / "rollouts.jsonl") for branch in line["branches"]]
    assert branches
    for branch in branches:
        parts = branch["parts"]
        assert parts["reward_model"] == pytest.approx(parts["reward_model/raw"] - parts["reward_model/reference"])
        assert branch["score"] == pytest.approx(parts["variety"] + 0.5 * parts["reward_model"])


def test_the_kl_coefficient_goes_on_where_the_stopped_run_left_it(directory: Path) -> None:
    lines = read_lines(directory / "ppo" / "metrics.jsonl")
    # Error -0.2, rate 0.1: each step leaves 0.98 of it.
    used = [line["policy/kl_coef"] for line in lines if "policy/kl_coef" in line]
    assert used == pytest.approx([COEF, COEF * 0.98, COEF * 0.98**2])
    kept = [
        json.loads((directory / "ppo" / "checkpoints" / f"step-{step:06d}" / "state.json").read_text())["kl_coef"]
        for step in (2, 3)
    ]
    assert kept == pytest.approx([COEF * 0.98**2, COEF * 0.98**3])


def test_a_checkpoint_holds_the_critic_and_a_resume_goes_on_with_it(directory: Path) -> None:
    path = directory / "ppo" / "checkpoints" / "latest" / "critic"
    critic = AutoModelForSequenceClassification.from_pretrained(path)
    assert critic.config.num_labels == 1
    start = load_file(directory / "reward_model" / "model.safetensors")
    began = torch.cat([start[name].flatten() for name in sorted(start)])
    # Eight optimizer steps to step 2, four more to step 3: had the resume begun anew, step 3 would be closer to the
    # start.
    assert 0 < (critic_at(directory, 3) - critic_at(directory, 2)).norm() < (critic_at(directory, 3) - began).norm()
    assert (critic_at(directory, 2) - began).norm() < (critic_at(directory, 3) - began).norm()


def test_the_kl_is_to_the_start_also_after_a_resume(directory: Path) -> None:
    first, *later = (abs(line["policy/kl"]) for line in read_lines(directory / "ppo" / "metrics.jsonl")[1:])
    assert first < 1e-4  # the first rollout is the starting model's
    assert min(later) > 10 * first


def test_frozen_layers_of_the_policy_are_those_it_started_with(directory: Path) -> None:
    began = load_file(directory / "model" / "model.safetensors")
    ended = load_file(directory / "ppo" / "checkpoints" / "latest" / "model.safetensors")
    moved = {name for name in began if not torch.equal(began[name], ended[name])}
    # Half of two layers, and the embedding that is tied to the head.
    assert moved == {name for name in began if ".layers.1." in name or name == "model.norm.weight"}


def test_the_critic_may_start_from_a_run_like_every_other_model(tmp_path: Path) -> None:
    write_model(tmp_path / "model", tied=True)
    with CheckpointStore(tmp_path / "critic_run" / "checkpoints").writing(1) as checkpoint:
        write_model(checkpoint, tied=True)
    config = load_config(
        PPOConfig,
        [
            f"model.path={tmp_path / 'model'}",
            f"critic.start={tmp_path / 'critic_run'}",
            "rollout={max_prompt_tokens: 64, max_response_tokens: 32}",
            "data={type: word_problems, num_train: 40, num_heldout: 4}",
        ],
    )
    prepared, _ = prepare_models(config)
    assert Path(prepared.critic.start).name == "step-000001"
