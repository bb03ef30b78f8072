"""What the trainer holds is what the generators sample from, after every sync; and the gate sees when it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.cast import Cast
from actors.consistency import ConsistencyGate
from actors.generators import Generators, generator_arguments, start_generators
from actors.objective import PolicyObjective
from actors.placement import Stage
from actors.policy import Policy, PolicyWorker
from algorithms.packing import Batch
from core.algorithm_recipes import AlgorithmConfig
from core.errors import ConsistencyError
from core.recipes import GRPOConfig
from core.role_recipes import ConsistencyConfig, GeneratorConfig, PolicyConfig
from jobs.train_grpo import train
from tests.actors.small import random_group, with_targets, write_model
from tests.actors.stale_head import ForgetfulGenerator

EXACT = 1e-4
"""Nats. Both sides compute in fp32: sums in another order differ by about 1e-6, a stale weight by tenths."""


def test_two_zero3_ranks_feed_two_generators_that_run_one_step_ahead(stage: Stage, tmp_path: Path) -> None:
    # 256 x 768 elements in an MLP matrix: more than ZeRO-3 leaves whole.
    model = write_model(tmp_path / "model", tied=False, hidden_size=256)
    config = GRPOConfig(
        steps=3,
        run={"name": "sync", "directory": str(tmp_path)},
        model={"type": "pretrained", "path": model},
        data={"type": "word_problems", "num_train": 100, "num_heldout": 8},
        rewards=[{"fn": "tests.actors.small:variety"}],
        rollout={
            "prompts_per_step": 4,
            "group_size": 4,
            "max_prompt_tokens": 100,
            "max_response_tokens": 12,
            "max_lag": 1,
        },
        algorithm={"minibatches": 2},
        policy={"num_ranks": 2, "zero_stage": 3, "precision": "fp32", "learning_rate": 1e-3},
        generator={"num_engines": 2, "cpu_cache_gib": 0.1},
        placement={"mode": "separate"},
        evaluation={"every": 0},
        checkpoint={"every": 0},
    )
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "sync" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["consistency/logprob_gap"] < EXACT for line in lines)
    # The prompts of steps 1 and 2 are both sampled with the first weights, those of step 3 not before version 1.
    assert [line["rollout/lag_max"] for line in lines[1:]] == [0, 1, 1]
    assert all(line["policy/grad_norm"] > 0 for line in lines[1:])
    events = (tmp_path / "sync" / "events.jsonl").read_text()
    assert '"finished"' in events
    assert {row["role"] for row in json.loads((tmp_path / "sync" / "placement.json").read_text())} == {
        "policy",
        "generator",
    }


def test_the_gate_passes_a_tied_head_that_arrived_and_catches_one_that_stayed_old(stage: Stage, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", tied=True)
    stays_old = tmp_path / "the head stays old"
    config = GeneratorConfig(cpu_cache_gib=0.1)
    (arguments,) = generator_arguments(
        model, config, max_length=128, precision="fp32", transport="gloo", sleep=False, seed=0
    )
    arguments["flag"] = str(stays_old)
    learning_rate = 0.01
    policy = Policy(
        stage.group(PolicyWorker, [{"rank": 0, "world_size": 1}], role="policy"),
        PolicyConfig(precision="fp32", learning_rate=learning_rate, schedule="constant"),
    )
    generators = Generators(
        stage.group(ForgetfulGenerator, [arguments], role="generator", max_concurrency=100), config, sleeps=False
    )
    groups = [random_group(20, [10, 10], vocab=300, name=str(index)) for index in range(4)]
    gate = ConsistencyGate([group.prompt_ids for group in groups], ConsistencyConfig(), precision="fp32")
    probe = Batch.from_groups(groups)

    nobody: Any = None  # roles that take no part in a sync

    def learn() -> float:
        """One update; by how much it moved the log-probabilities."""
        before = policy.logprobs(probe)
        policy.step([with_targets(groups)], PolicyObjective(AlgorithmConfig()))
        return float((policy.logprobs(probe) - before).abs().mean())

    publish = Cast(
        tokenizer=nobody,
        policy=policy,
        reference=None,
        generators=generators,
        rewarder=nobody,
        evaluator=nobody,
        gate=gate,
    ).publish

    try:
        policy.start(model, total_steps=10, seed=0)
        policy.ready()
        start_generators(generators.group, config)
        policy.connect(generators, transport="gloo", timeout_s=config.sync_timeout_s)
        assert publish(0) < EXACT
        assert learn() > 0.1
        assert publish(1) < EXACT

        stays_old.touch()
        assert learn() > 0.1
        with pytest.raises(ConsistencyError, match="the generator does not run the weights that were sent"):
            publish(2)

        stays_old.unlink()
        assert publish(3) < EXACT
        (asked,) = generators.logprobs(0, [[*groups[0].prompt_ids, *groups[0].branches[0].token_ids]]).result(60)
        torch.testing.assert_close(torch.tensor(asked[-10:]), policy.logprobs(probe)[:10], atol=1e-3, rtol=0)
    finally:
        generators.shutdown()
        policy.shutdown()
