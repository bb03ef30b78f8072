"""Runs on a mixture with further held-out sets: metrics of each, rewards of each source, and an exact resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.actors.small import write_model
from tests.training.test_rollouts import TOKENIZER, LastInFirstOut
from tests.training.test_supervised import column, common, weights
from troupe.actors.rewarder import Rewarder
from troupe.config.data import MixtureConfig
from troupe.config.own_data import JsonlConfig
from troupe.config.rollout import RewardConfig, RolloutConfig
from troupe.config.supervised import SFTConfig
from troupe.data import load_data, stream_of
from troupe.files import read_lines
from troupe.jobs.train_sft import train_sft
from troupe.training.evaluator import Evaluator
from troupe.training.rollouts import Rollouts

pytestmark = pytest.mark.usefixtures("one_rank")


def write(path: Path, count: int, answer: str) -> str:
    rows = [{"prompt": f"{path.stem} {n}?", "completion": f"{n} {answer}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    sources = {
        "maths": {"type": "jsonl", "path": write(tmp_path / "maths.jsonl", 12, "pens"), "num_heldout": 3},
        "chats": {"type": "jsonl", "path": write(tmp_path / "chats.jsonl", 8, "hello"), "num_heldout": 2},
    }
    return {"type": "mixture", "sources": sources, "weights": {"maths": 3.0, "chats": 1.0}}


def test_a_supervised_run_measures_every_set_and_resumes_exactly(tmp_path: Path, data: dict[str, Any]) -> None:
    write_model(tmp_path / "model", tied=True)
    other = {"other": {"type": "jsonl", "path": write(tmp_path / "other.jsonl", 4, "cups")}}

    def config(name: str, steps: int) -> SFTConfig:
        settings = common(tmp_path, name, data, steps=steps, learning_rate=3e-3)
        settings |= {"checkpoint": {"every": 2}, "batch_size": 6, "heldout": other}
        return SFTConfig(**{**settings, "evaluation": {"every": 0, "best_metric": "other/nll"}})

    train_sft(config("whole", 4))
    train_sft(config("parts", 2))
    train_sft(config("parts", 4))
    whole, parts = weights(tmp_path / "whole", 4), weights(tmp_path / "parts", 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    last = read_lines(tmp_path / "whole" / "metrics.jsonl")[-1]
    assert {f"eval/{name}/nll" for name in ("mixture", "maths", "chats", "other")} <= last.keys()
    # 24 draws, 18 of 9 maths and 6 of 6 chats.
    assert (last["data/maths/epochs"], last["data/chats/epochs"]) == (2.0, 1.0)
    means = column(tmp_path / "whole", "eval/mixture/nll")
    assert means[-1] < means[0]


@pytest.fixture
def generators() -> Iterator[LastInFirstOut]:
    fake = LastInFirstOut()
    yield fake
    fake.close()


def variety(sample: Any, branch: Any) -> float:
    return float(len(set(branch.token_ids)) % 3)


def one(sample: Any, branch: Any) -> float:
    return 1.0


HERE = "tests.training.test_mixture"
REWARDS = [RewardConfig(fn=f"{HERE}:variety", sources=["maths"]), RewardConfig(fn=f"{HERE}:one", sources=["chats"])]


def test_rollouts_keep_the_sources_apart_and_resume_exactly(generators: LastInFirstOut, data: dict[str, Any]) -> None:
    loaded = load_data(MixtureConfig(**data))

    def build(state: Any = None) -> Rollouts:
        config = RolloutConfig(prompts_per_step=4, group_size=3, max_response_tokens=9, timeout_s=60, max_lag=1)
        prompts, rewarder = stream_of(loaded, 0, state), Rewarder(REWARDS)
        return Rollouts(prompts, TOKENIZER, generators, rewarder, config, seed=0, last_step=9, requires_group=True)  # type: ignore[arg-type]

    whole = build()
    first = whole.next_batch(1)
    whole.prefetch(1)  # step 2 and 3 are in flight and not trained on
    state = json.loads(json.dumps(whole.state()))
    assert state["position"] == 4
    assert (first.metrics["rollout/maths/groups"], first.metrics["rollout/chats/groups"]) == (3, 1)
    assert first.metrics["reward/chats/mean"] == first.metrics["reward/one"] == 1
    assert first.metrics["reward/maths/mean"] == pytest.approx(first.metrics["reward/variety"])
    for group in first.groups:  # one reward each
        name = {"maths": "variety", "chats": "one"}[group.sample.fields["source"]]
        assert all(score.parts.keys() == {name} for score in group.scores)
    generators.version = 1
    again = build(state).next_batch(2)
    assert [group.sample.sample_id for group in again.groups] == [
        group.sample.sample_id for group in whole.next_batch(2).groups
    ]


def test_an_evaluator_answers_each_sample_once_and_measures_every_set(
    generators: LastInFirstOut, data: dict[str, Any], tmp_path: Path
) -> None:
    others = {"other": JsonlConfig(path=write(tmp_path / "other.jsonl", 4, "cups"))}
    sets = load_data(MixtureConfig(**data), others).heldout_sets(None)
    evaluator = Evaluator(
        sets,
        TOKENIZER,
        generators,  # type: ignore[arg-type]
        Rewarder([RewardConfig(fn=f"{HERE}:one"), RewardConfig(fn=f"{HERE}:variety", sources=["maths"])]),
        max_prompt_tokens=100,
        max_response_tokens=9,
    )
    evaluation = evaluator.evaluate()
    assert len(generators.finished) == 5 + 4
    assert {name: len(rows) for name, rows in evaluation.rows().items()} == {"mixture": 5, "other": 4}
    assert all(evaluation.metrics[f"eval/{name}/one"] == 1 for name in ("mixture", "maths", "chats", "other"))
    assert {name for name in evaluation.metrics if name.endswith("variety")} == {
        "eval/mixture/variety",
        "eval/maths/variety",
    }
