"""Tic-tac-toe over the agents' address and through the environment's class, on real engines: the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import openai
import pytest
import smolagents

from tests.conftest import ROOT
from troupe.config.evaluation import EvaluateConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.environments.tic_tac_toe import TicTacToe
from troupe.evaluation import evaluate
from troupe.files import read_lines
from troupe.jobs.train_grpo import train
from troupe.records import Sample

SHORT = [
    "steps=2",
    "data.num_train=100",
    "model.warm_start={steps: 80, demonstrations_per_step: 16}",  # enough for moves that can be made
    "placement.backend=inline",
    "policy.precision=fp32",
    "rollout={prompts_per_step: 4, group_size: 4}",
    "algorithm.minibatches=2",
    "generator.cpu_cache_gib=0.1",
    "evaluation={every: 0, num_samples: 4}",
    "checkpoint.every=2",
]
LONG = ["rollout.max_response_tokens=1600", "model.max_length=2048", "model.warm_start.steps=12"]
GAP = "algorithm={old_logprobs: recompute, importance: {type: truncate}}"
"""Measures how far the sampler's log-probabilities of each token are from the trainer's."""
HELD_OUT = [
    "data={type: tic_tac_toe, num_train: 100, num_heldout: 48, board: names, tag: null}",
    "num_samples=4",
    "metrics=[]",
    "max_prompt_tokens=48",
    "max_response_tokens=176",
    "precision=fp32",
    "placement.backend=inline",
    "generator.cpu_cache_gib=0.1",
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


def like_a_cell(text: str) -> float:
    """Share of the letters and digits of cells that a text has: a score with a signal for the tiniest model."""
    return len(set(text) & set("ABC123")) / 6


async def check(client: openai.AsyncOpenAI, sample: Sample) -> dict[str, float]:
    """Choose, and ask again until two answers agree."""
    turns, said = list(sample.prompt), [""]
    while len(said) < 4 and (len(said) < 3 or said[-1] != said[-2]):
        answer = await client.chat.completions.create(model="policy", messages=turns, max_tokens=4)  # type: ignore[arg-type]
        said.append(answer.choices[0].message.content or "")
        turns += [{"role": "assistant", "content": said[-1]}, {"role": "user", "content": "Sure?"}]
    return {"reward": like_a_cell(said[-1]), "agreed": float(said[-1] == said[-2])}


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


def of_a_library(client: openai.OpenAI, sample: Sample) -> float:
    """Let smolagents' code agent choose, with a prompt as short as the tiny model needs it."""
    model = smolagents.OpenAIServerModel(
        model_id="policy", api_base=str(client.base_url), api_key=client.api_key, max_tokens=16
    )
    prompts = {**smolagents.agents.EMPTY_PROMPT_TEMPLATES, "system_prompt": "Write Python."}
    agent = smolagents.CodeAgent(tools=[], model=model, prompt_templates=prompts, max_steps=2, verbosity_level=0)
    board = str(sample.prompt[-1]["content"])  # type: ignore[index]
    return like_a_cell(str(agent.run(board)))


def weights_after(directory: Path, name: str, *overrides: str) -> list[str]:
    settings = [f"run={{name: {name}, directory: {directory}}}", f"model.cache={directory / 'models'}", *SHORT]
    train(load_config(GRPOConfig, [str(ROOT / "configs" / "tic_tac_toe" / "small.yaml"), *settings, *overrides]))
    files = sorted((directory / name / "checkpoints").glob("*2/*.safetensors"))
    assert files
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agents")


@pytest.fixture(scope="module")
def by_class(directory: Path) -> list[str]:
    """The weights that a run with the environment's class ends in."""
    return weights_after(directory, "by_class")


def test_games_over_the_address_end_in_the_weights_of_the_environment_bit_by_bit(
    directory: Path, by_class: list[str]
) -> None:
    by_agent = weights_after(directory, "by_agent", "environment=null", AGENT, "evaluation.best_metric=agent")
    assert by_agent == by_class
    first, last = (read_lines(directory / name / "metrics.jsonl")[-1] for name in ("by_class", "by_agent"))
    assert first["reward/mean"] == last["reward/mean"]
    assert first["reward/environment/num_moves"] > 0
    assert first["policy/grad_norm"] > 0
    assert first["consistency/logprob_gap"] == last["consistency/logprob_gap"] < 1e-4
    assert last["reward/agent/failed"] == 0


@pytest.mark.usefixtures("by_class")
def test_an_agents_evaluation_is_that_of_the_environment(directory: Path) -> None:
    """The run by the class has measured its last step; the job measures that checkpoint by the agent."""
    run = directory / "by_class"
    (model,) = (run / "checkpoints").glob("*2")
    result = evaluate(
        load_config(EvaluateConfig, [f"model={model}", AGENT, f"output={directory / 'measured'}", *HELD_OUT])
    )
    (measured,) = result.metrics.values()
    last = read_lines(run / "metrics.jsonl")[-1]
    assert measured["agent"].mean == last["eval/tic_tac_toe/environment"]
    assert measured["response_tokens"].mean == last["eval/tic_tac_toe/response_tokens"]
    (answers,) = (directory / "measured" / "generated").glob("*.jsonl")
    games = {row["sample_id"]: row["text"] for row in read_lines(run / "answers.jsonl") if row["step"] == 2}
    assert set(games) == {row["sample_id"] for row in read_lines(answers)}
    for row in read_lines(answers):
        assert games[row["sample_id"]].endswith(row["text"])
        assert row["outcome"]["parts"]["agent/failed"] == 0


@pytest.mark.parametrize(("agent", "fewest", "most"), [("check", 1, 1), ("compact", 2, 2), ("of_a_library", 2, 3)])
def test_an_unmodified_agent_trains_with_the_gate_of_plain_rollouts(
    directory: Path, agent: str, fewest: int, most: int
) -> None:
    settings = [f"agent={{fn: 'tests.long.test_agents:{agent}'}}", "environment=null", "evaluation.best_metric=agent"]
    weights_after(directory, agent, *settings, *LONG, GAP)
    _, *steps = read_lines(directory / agent / "metrics.jsonl")
    for line in steps:
        assert line["reward/agent/failed"] == 0
        assert fewest <= line["reward/agent/lines"] <= most
        assert line["reward/agent/requests"] >= 2
        assert line["reward/missing_fraction"] == 0
        assert line["rollout/environment_tokens"] > 0
        assert line["consistency/logprob_gap"] < 1e-4
        assert line["importance/kl"] < 1e-8
        assert line["policy/grad_norm"] > 0
