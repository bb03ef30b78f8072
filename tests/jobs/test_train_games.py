"""Whole games on the real stack: turns of an environment between the model's tokens, overlapped with training or
not.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from troupe.config.evaluation import EvaluateConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.files import read_lines
from troupe.jobs.evaluate import evaluate
from troupe.jobs.train_grpo import train

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("cluster")

GAME = [
    "data.num_train=100",
    "data.num_heldout=8",
    "environment={fn: tic_tac_toe, max_turns: 5, max_turn_tokens: 12}",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("games")


@pytest.fixture(scope="module")
def trained(directory: Path) -> list[dict]:
    """The lines of the metrics of two steps with the recipe of the small games, playing ahead of the training."""
    short = [
        *GAME,
        "steps=2",
        f"run={{name: trained, directory: {directory}}}",
        f"model.cache={directory / 'models'}",
        "model.warm_start.steps=30",
        "policy.precision=fp32",
        "rollout.prompts_per_step=4",
        "rollout.group_size=4",
        "rollout.max_lag=1",
        "algorithm.minibatches=2",
        "generator.cpu_cache_gib=0.1",
        "evaluation.every=2",
        "checkpoint.every=2",
    ]
    train(load_config(GRPOConfig, [str(ROOT / "configs" / "tic_tac_toe" / "small.yaml"), *short]))
    return read_lines(directory / "trained" / "metrics.jsonl")


def test_games_are_played_ahead_and_trained_on(trained: list[dict], directory: Path) -> None:
    before, first, last = trained
    assert {"eval/tic_tac_toe/environment/win"} <= before.keys() & last.keys()
    assert "eval/tic_tac_toe/environment/win" not in first
    assert all(line["consistency/logprob_gap"] < 1e-4 for line in trained)
    assert all(line["policy/grad_norm"] > 0 and line["rollout/lag_max"] <= 1 for line in (first, last))
    games = [branch for row in read_lines(directory / "trained" / "rollouts.jsonl") for branch in row["branches"]]
    ends = ("win", "draw", "loss", "invalid_move")
    over = [game["parts"] for game in games if game["finish_reason"] != "length"]
    assert over
    assert all(sum(parts[f"environment/{end}"] for end in ends) == 1 for parts in over)


def test_a_checkpoint_plays_the_held_out_games_again_as_it_did_in_its_run(trained: list[dict], directory: Path) -> None:
    overrides = [
        *GAME,
        f"models={{trained: {directory / 'trained'}}}",
        f"output={directory / 'evaluation'}",
        "generator.cpu_cache_gib=0.1",
        "data.type=tic_tac_toe",
        "data.board=names",
        "data.tag=null",
        "precision=fp32",
        "max_prompt_tokens=48",
        "max_response_tokens=176",
        "metrics=[]",
    ]
    evaluate(load_config(EvaluateConfig, overrides))
    results = json.loads((directory / "evaluation" / "metrics.json").read_text())
    win = results["models"]["trained"]["environment/win"]["mean"]
    assert win == trained[-1]["eval/tic_tac_toe/environment/win"]
