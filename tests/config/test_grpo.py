"""RLOO and PPO are GRPO's recipe with other defaults, and refuse what would make them something else."""

from __future__ import annotations

import pytest

from troupe.config.grpo import GRPOConfig, PPOConfig, RLOOConfig
from troupe.config.loader import dump_config, load_config
from troupe.errors import ConfigError


def test_rloo_takes_a_whole_answer_as_one_action_with_the_kl_in_its_reward() -> None:
    algorithm = load_config(RLOOConfig, []).algorithm
    assert (algorithm.advantage, algorithm.ratio, algorithm.aggregation) == ("rloo", "sequence", "sequence_mean")
    assert (algorithm.kl.placement, algorithm.kl.kind, algorithm.epochs * algorithm.minibatches) == ("reward", "k1", 1)


def test_ppo_needs_one_answer_per_prompt_and_keeps_the_kl_in_the_reward() -> None:
    config = load_config(PPOConfig, [])
    assert (config.rollout.group_size, config.algorithm.advantage) == (1, "gae")
    assert (config.algorithm.kl.placement, config.algorithm.kl.kind) == ("reward", "k1")
    assert config.kl_needs_reference


@pytest.mark.parametrize(
    ("recipe", "arguments", "sentence"),
    [
        (GRPOConfig, ["algorithm.advantage=gae"], "gae needs a critic; use jobs/train_ppo.py"),
        (
            PPOConfig,
            ["algorithm.advantage=rloo", "rollout.group_size=4"],
            "'rloo' needs no critic; use jobs/train_grpo",
        ),
        (PPOConfig, ["algorithm.kl.estimator=k3"], "estimator 'k3' in PPO's token rewards is biased; use k1"),
        (PPOConfig, ["critic.start=reward_model"], r"needs reward_model\.path; set it, or critic\.start: policy"),
        (PPOConfig, ["gae.lam=1.5"], "must be at most 1"),
        (PPOConfig, ["critic.value_clip=0"], "must be above 0"),
        (PPOConfig, ["algorithm.kl.coef=0", "algorithm.kl.adaptive.target=6"], "adaptive needs a first coefficient"),
        (RLOOConfig, ["algorithm.aggregation=token_mean"], "needs aggregation: sequence_mean"),
        (RLOOConfig, ["rollout.group_size=1"], r"needs rollout\.group_size >= 2 \(got 1\)"),
        (RLOOConfig, ["rewards=[]"], "rewards must name at least one function"),
    ],
)
def test_what_would_be_another_method_is_refused(recipe: type[GRPOConfig], arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(recipe, arguments)


def test_a_reward_model_may_be_the_only_reward_and_the_only_metric() -> None:
    arguments = ["rewards=[]", "evaluation.metrics=[]", "reward_model.path=rm", "critic.start=reward_model"]
    config = load_config(PPOConfig, arguments)
    assert config.evaluation.best == "reward_model"
    with pytest.raises(ConfigError, match=r"evaluation\.metrics must name at least one metric"):
        load_config(PPOConfig, ["evaluation.metrics=[]"])


@pytest.mark.parametrize("recipe", [RLOOConfig, PPOConfig])
def test_the_dumped_recipe_says_the_same(recipe: type[GRPOConfig], tmp_path) -> None:
    config = load_config(recipe, ["algorithm.kl.adaptive.target=6", "algorithm.epochs=3"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(recipe, [str(file)]) == config


@pytest.mark.parametrize(
    ("recipe", "arguments", "sentence"),
    [
        (
            GRPOConfig,
            [],
            "64 prompts x 8 branches = 512 sequences a step, 4 optimizer steps of about 16 groups over 1 rank, 30 steps",
        ),
        (
            GRPOConfig,
            ["rollout.prompts_per_step=10", "rollout.group_size=3", "algorithm.minibatches=3", "steps=1"],
            "10 prompts x 3 branches = 30 sequences a step, 3 optimizer steps of about 3 groups over 1 rank, 1 steps",
        ),
        (
            PPOConfig,
            ["policy.num_ranks=2"],
            "64 prompts x 1 branches = 64 sequences a step, 8 optimizer steps of about 32 groups over 2 ranks, 30 steps",
        ),
        (
            RLOOConfig,
            [],
            "64 prompts x 4 branches = 256 sequences a step, 1 optimizer steps of about 64 groups over 1 rank, 30 steps",
        ),
    ],
)
def test_the_arithmetic_of_a_step(recipe: type[GRPOConfig], arguments: list[str], sentence: str) -> None:
    assert load_config(recipe, arguments).arithmetic() == sentence


def test_the_longest_sequence_is_the_longer_of_training_and_evaluation() -> None:
    short = load_config(GRPOConfig, ["rollout.max_prompt_tokens=100", "rollout.max_response_tokens=20"])
    assert short.longest_sequence[0] == 120
    both = ["rollout.max_prompt_tokens=100", "rollout.max_response_tokens=20", "evaluation.max_response_tokens=30"]
    assert load_config(GRPOConfig, both).longest_sequence[0] == 130
    # A model made here has room for 512, and the sentence names the fields.
    with pytest.raises(ConfigError, match=r"rollout\.max_prompt_tokens \+ max_response_tokens \(513\) must be at most"):
        load_config(GRPOConfig, ["rollout.max_prompt_tokens=473"])
    assert load_config(GRPOConfig, ["rollout.max_prompt_tokens=473", "model.max_length=513"])


def test_what_a_model_measures_of_every_answer() -> None:
    assert GRPOConfig().model_parts == []
    everything = load_config(
        GRPOConfig,
        [
            "reward_model.path=rm",
            "perplexity_reward.kind=absolute",
            "environment={fn: tic_tac_toe, max_turn_tokens: 9}",
        ],
    )
    assert everything.model_parts == [
        "reward_model",
        "perplexity",
        "perplexity/improvement",
        "perplexity/gold",
        "perplexity/nll",
        "perplexity/baseline",
        "environment",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["algorithm.minibatches=5", "rollout.prompts_per_step=4"], r"minibatches \(5\) must be at most .* \(4\): a group is never split"),
        (["policy.num_ranks=20"], r"num_ranks x algorithm.minibatches \(20 x 4\) must be at most rollout.prompts_per_step \(64\)"),
        (["algorithm.overlong.penalty_tokens=40"], r"penalty_tokens \(40\) must be below rollout.max_response_tokens \(40\)"),
        (["algorithm.kl.coef=0.1", "reference.source=adapter_off"], "adapter_off needs policy.lora; set it, or reference.source: own"),
        (["reference.source=shared_trunk"], "shared_trunk needs policy.frozen_layers above 0 .* or reference.source: own_weights"),
        (["reference.source=shared_trunk", "policy.lora.rank=4", "policy.frozen_layers=0.5"], "or reference.source: adapter_off"),
        (["placement.backend=inline", "policy.num_ranks=2"], "inline runs one policy rank and one engine"),
        (["placement.backend=inline", "generator.num_engines=2"], "use backend: ray for more"),
        (["evaluation.best_metric=acuracy"], r"best_metric 'acuracy' is not among the metrics \(accuracy\)"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_each_other_are_both_named(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(GRPOConfig, arguments)


def test_an_adapter_without_a_kl_needs_no_reference() -> None:
    config = load_config(GRPOConfig, ["reference.source=adapter_off"])
    assert not config.kl_needs_reference
    assert load_config(GRPOConfig, ["algorithm.kl.coef=1e-9"]).kl_needs_reference
