"""Tic-tac-toe over the agents' address and through the environment's class, on real engines: the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import openai

from tests.conftest import ROOT
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.environments.tic_tac_toe import TicTacToe
from troupe.files import read_lines
from troupe.jobs.train_grpo import train
from troupe.records import Sample

SHORT = [
    "steps=2",
    "data.num_train=100",
    "model.warm_start.steps=12",
    "placement.backend=inline",
    "policy.precision=fp32",
    "rollout={prompts_per_step: 4, group_size: 4}",
    "algorithm.minibatches=2",
    "generator.cpu_cache_gib=0.1",
    "evaluation={every: 0, num_samples: 4}",
    "checkpoint.every=2",
]
AGENT = "agent={fn: 'tests.long.test_agents:play', order: rounds}"


async def play(client: openai.AsyncOpenAI, sample: Sample) -> float:
    """Play as any program would that knows an OpenAI client and nothing of training."""
    game, turns, reward = TicTacToe(), list(sample.prompt), 0.0
    game.reset(sample, 0)
    for _ in range(5):
        answer = await client.chat.completions.create(model="policy", messages=turns, max_tokens=4)  # type: ignore[arg-type]
        text = answer.choices[0].message.content or ""
        turn = game.step(text)
        reward += turn.reward
        if turn.done:
            break
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": turn.observation}]
    return reward


def weights_after(directory: Path, name: str, *overrides: str) -> list[str]:
    settings = [f"run={{name: {name}, directory: {directory}}}", f"model.cache={directory / 'models'}", *SHORT]
    train(load_config(GRPOConfig, [str(ROOT / "configs" / "tic_tac_toe" / "small.yaml"), *settings, *overrides]))
    files = sorted((directory / name / "checkpoints").glob("*2/*.safetensors"))
    assert files
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_games_over_the_address_end_in_the_weights_of_the_environment_bit_by_bit(tmp_path: Path) -> None:
    by_class = weights_after(tmp_path, "by_class")
    by_agent = weights_after(tmp_path, "by_agent", "environment=null", AGENT, "evaluation.best_metric=agent")
    assert by_agent == by_class
    first, last = (read_lines(tmp_path / name / "metrics.jsonl")[-1] for name in ("by_class", "by_agent"))
    assert first["reward/mean"] == last["reward/mean"]
    assert first["consistency/logprob_gap"] == last["consistency/logprob_gap"] < 1e-4
    assert last["reward/agent/failed"] == 0
