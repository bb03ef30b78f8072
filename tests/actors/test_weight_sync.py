"""What the trainer holds is what the generators sample from, after every sync; and the gate sees when it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from tests.actors.forgetful import ForgetfulGenerator
from tests.actors.small import random_group, with_targets, write_model
from troupe.actors.consistency import LogprobCheck
from troupe.actors.generator import Request
from troupe.actors.generators import Generators, generator_arguments, start_generators
from troupe.actors.placement import Cluster
from troupe.actors.policy import Policy, PolicyWorker
from troupe.algorithms.objective import PolicyObjective
from troupe.chat import load_tokenizer
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.models import ConsistencyConfig, GeneratorConfig, PolicyConfig
from troupe.errors import ConsistencyError
from troupe.jobs.train_grpo import train

EXACT = 1e-4
"""Nats. Both sides compute in fp32: sums in another order differ by about 1e-6, a stale weight by tenths."""


def test_two_zero3_ranks_feed_two_generators_that_run_one_step_ahead(cluster: Cluster, tmp_path: Path) -> None:
    # 256 x 768 elements in an MLP matrix: more than ZeRO-3 leaves whole.
    model = write_model(tmp_path / "model", tied=False, hidden_size=256)
    config = GRPOConfig(
        steps=3,
        run={"name": "sync", "directory": str(tmp_path)},
        model={"type": "pretrained", "path": model},
        data={"type": "word_problems", "num_train": 100, "num_heldout": 8},
        rewards=[{"fn": "tests.light_rewards:variety"}],
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


def write_mixture(directory: Path) -> None:
    """Put a small Mixtral in the place of the model in `directory`; its tokenizer stays."""
    tokens = len(AutoTokenizer.from_pretrained(directory))
    torch.manual_seed(0)
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=tokens,
            hidden_size=128,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=3,
            pad_token_id=1,
        )
    ).save_pretrained(directory)


class Pair:
    """A policy and an engine that can be told to do wrong, with a gate between them."""

    def __init__(self, cluster: Cluster, directory: Path, *, tied: bool, precision: str, experts: bool = False) -> None:
        self.model = write_model(directory / "model", tied=tied, hidden_size=128)
        if experts:
            write_mixture(Path(self.model))
        self.fault = directory / "fault"
        self.precision = precision
        config = GeneratorConfig(cpu_cache_gib=0.1)
        (arguments,) = generator_arguments(
            self.model, config, max_length=128, precision=precision, transport="gloo", sleep=False, seed=0
        )
        self.policy = Policy(
            cluster.workers(PolicyWorker, [{"rank": 0, "world_size": 1}], role="policy"),
            PolicyConfig(precision=precision, learning_rate=1e-5, schedule="constant"),
        )
        forgetful = [{**arguments, "flag": str(self.fault)}]
        self.generators = Generators(
            cluster.workers(ForgetfulGenerator, forgetful, role="generator", max_concurrency=100), config, sleeps=False
        )
        self.groups = [random_group(20, [10, 10], vocab=300, name=str(index)) for index in range(4)]
        self.logprob_check = LogprobCheck(
            [group.prompt_ids for group in self.groups], ConsistencyConfig(), precision=precision, max_length=128
        )
        self.version = 0

    def start(self) -> None:
        self.policy.start(self.model, total_steps=100, seed=0)
        self.policy.ready()
        start_generators(self.generators.workers, self.generators.config)
        self.policy.connect(self.generators, transport="gloo", timeout_s=60)
        self.publish()

    def learn(self) -> None:
        self.policy.update([with_targets(self.groups)], PolicyObjective(AlgorithmConfig()))

    def publish(self) -> dict[str, float]:
        self.version += 1
        return self.logprob_check.publish(self.policy, self.generators, self.version)

    def shutdown(self) -> None:
        self.generators.shutdown()
        self.policy.shutdown()


FAULTS = {
    "head": "the packed copy of lm_head.weight is an old one",
    "layer": "model.layers.1.self_attn.q_proj.weight was not loaded",
    "part": "model.layers.1.self_attn.k_proj.weight was not loaded",
    "pack": "model.layers.1.self_attn.qkv_proj.weight, packed, is not what was loaded",
    "wire": "model.norm.weight is not what was sent",
}
"""What `forgetful` does wrong, and what the gate says."""


@pytest.mark.parametrize(("tied", "precision"), [(True, "fp32"), (False, "bf16")])
def test_what_an_engine_does_not_hold_is_named_after_one_update_and_rounding_stops_nothing(
    cluster: Cluster, tmp_path: Path, tied: bool, precision: str
) -> None:
    pair = Pair(cluster, tmp_path, tied=tied, precision=precision)
    try:
        pair.start()
        assert pair.logprob_check.bound == 1e-3 if precision == "fp32" else pair.logprob_check.noise > 1e-4
        for fault, told in FAULTS.items():
            pair.learn()  # once: in bf16 it changes every fiftieth weight
            pair.fault.write_text(fault)
            with pytest.raises(ConsistencyError, match=f"engine 0 does not hold the weights that were sent: .*{told}"):
                pair.publish()
            pair.fault.unlink()
            measured = pair.publish()
            assert measured["consistency/logprob_gap"] < measured["consistency/max_gap"]
        if precision == "fp32":
            require_the_gap_sees_an_old_head(pair)
    finally:
        pair.shutdown()


def require_the_gap_sees_an_old_head(pair: Pair) -> None:
    """By log-probabilities alone: 40 updates at 1e-5 move what this head gives by 0.0067 nats, more than three
    bounds.
    """
    pair.fault.write_text("head")
    for _ in range(40):
        pair.learn()
    expected = pair.logprob_check.expect(pair.policy)
    pair.policy.publish(pair.generators, version=100)
    with pytest.raises(ConsistencyError, match=r"the trainer disagree by 0\.00[3-9]\d* nats a token") as caught:
        pair.logprob_check.measure_gap(expected, pair.generators)
    assert "allowed: 0.001" in str(caught.value)


def test_experts_follow_the_trainer_although_vllm_packs_them_at_its_start_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Unpacked, they would be read as other weights: 0.02 nats even where nothing was learned."""
    pair = Pair(cluster, tmp_path, tied=False, precision="fp32", experts=True)
    try:
        pair.start()
        assert pair.logprob_check.gap < EXACT
        for _ in range(2):
            pair.learn()
            assert pair.publish()["consistency/logprob_gap"] < EXACT
        require_an_answer_ends_at_every_stop(pair)
    finally:
        pair.shutdown()


def require_an_answer_ends_at_every_stop(pair: Pair) -> None:
    """Half of the vocabulary ends an answer here, as the several ends of a chat template do; special tokens are read
    as well."""
    ends = tuple(range(150))
    request = Request(prompt_ids=[5, 6, 7], num_branches=8, max_tokens=100, temperature=1.0, seed=1, stop_ids=ends)
    tokenizer = load_tokenizer(pair.model)
    for branch in pair.generators.submit([request])[0].result(60):
        assert branch.finish_reason == "stop"
        assert [token in ends for token in branch.token_ids] == [False] * (len(branch.token_ids) - 1) + [True]
        assert branch.raw_text == tokenizer.decode(branch.token_ids)
        assert branch.text == tokenizer.decode(branch.token_ids, skip_special_tokens=True)


def test_a_bound_that_the_recipe_sets_is_the_bound() -> None:
    logprob_check = LogprobCheck([[1, 2]], ConsistencyConfig(max_gap=0.02), precision="bf16")
    assert logprob_check.bound == 0.02
