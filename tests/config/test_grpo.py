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
