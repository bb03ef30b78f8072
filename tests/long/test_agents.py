"""Tic-tac-toe over the agents' address and through the environment's class, on real engines: the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import openai
import pytest

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


async def compact(client: openai.AsyncOpenAI, sample: Sample) -> float:
    """Check an answer, then go on from a summary in a context of its own."""
    turns = list(sample.prompt)
    for say in ("Sure?", ""):
        answer = await client.chat.completions.create(model="policy", messages=turns, max_tokens=4)  # type: ignore[arg-type]
        text = answer.choices[0].message.content or ""
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": say}]
    summary = [{"role": "user", "content": f"x {text}"}]
    last = await client.chat.completions.create(model="policy", messages=summary, max_tokens=4)  # type: ignore[arg-type]
    return float(len(last.choices[0].message.content or "") % 2)


def weights_after(directory: Path, name: str, *overrides: str) -> list[str]:
    settings = [f"run={{name: {name}, directory: {directory}}}", f"model.cache={directory / 'models'}", *SHORT]
    train(load_config(GRPOConfig, [str(ROOT / "configs" / "tic_tac_toe" / "small.yaml"), *settings, *overrides]))
    files = sorted((directory / name / "checkpoints").glob("*2/*.safetensors"))
    assert files
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agents")


def test_games_over_the_address_end_in_the_weights_of_the_environment_bit_by_bit(directory: Path) -> None:
    by_class = weights_after(directory, "by_class")
    by_agent = weights_after(directory, "by_agent", "environment=null", AGENT, "evaluation.best_metric=agent")
    assert by_agent == by_class
    first, last = (read_lines(directory / name / "metrics.jsonl")[-1] for name in ("by_class", "by_agent"))
    assert first["reward/mean"] == last["reward/mean"]
    assert first["consistency/logprob_gap"] == last["consistency/logprob_gap"] < 1e-4
    assert last["reward/agent/failed"] == 0


def test_an_agent_of_several_contexts_trains_with_the_gate_of_plain_rollouts(directory: Path) -> None:
    agent = "agent={fn: 'tests.long.test_agents:compact'}"
    weights_after(directory, "contexts", "environment=null", agent, "evaluation.best_metric=agent")
    _, first, last = read_lines(directory / "contexts" / "metrics.jsonl")
    for line in (first, last):
        assert line["reward/agent/lines"] == 2
        assert line["reward/agent/requests"] == 3
        assert line["reward/missing_fraction"] == 0
        assert line["consistency/logprob_gap"] < 1e-4
        assert line["rollout/environment_tokens"] > 0
