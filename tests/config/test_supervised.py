"""The recipes of SFT, reward models and DPO: how many steps an epoch has, and what does not fit together."""

from __future__ import annotations

import pytest

from troupe.config.loader import load_config
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig, SupervisedConfig
from troupe.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "samples", "steps"),
    [
        ({}, 640, 10),
        ({}, 641, 11),  # the last step begins the next epoch
        ({}, 3, 1),
        ({"epochs": 2.5}, 640, 25),
        ({"epochs": 0.01}, 640, 1),
        ({"epochs": 1.1, "batch_size": 1}, 10, 11),  # 1.1 x 10 is 11.000000000000002
        ({"steps": 7}, 640, 7),
        ({"steps": 7, "epochs": 3.0}, 640, 7),
    ],
)
def test_steps_are_given_or_follow_from_epochs(settings: dict[str, float], samples: int, steps: int) -> None:
    assert SupervisedConfig(**settings).num_steps(samples) == steps  # type: ignore[arg-type]


def test_the_arithmetic_is_one_sentence() -> None:
    assert SFTConfig(epochs=1.5).arithmetic() == "64 samples a step over 1 rank, 1.5 epochs"
    two = RewardModelTrainingConfig(steps=9, batch_size=8, engine={"num_ranks": 2})
    assert two.arithmetic() == "8 samples a step over 2 ranks, 9 steps"


@pytest.mark.parametrize(
    ("recipe", "arguments", "sentence"),
    [
        (
            SFTConfig,
            ["batch_size=2", "engine.num_ranks=3"],
            r"engine\.num_ranks \(3\) must be at most batch_size \(2\)",
        ),
        (SFTConfig, ["max_length=513"], r"max_length \(513\) must be at most model\.max_length \(512\)"),
        (SFTConfig, ["placement.backend=inline", "engine.num_ranks=2"], "inline runs one rank; use backend: ray"),
        (SFTConfig, ["prompt_weight=1.5"], "must be at most 1"),
        (DPOConfig, ["reference=adapter_off"], "adapter_off needs engine.lora; set it, or reference: cached"),
        (DPOConfig, ["loss=ipo", "label_smoothing=0.1"], r"label_smoothing \(0\.1\) belongs to loss sigmoid"),
        (DPOConfig, ["label_smoothing=0.5"], "must be below 0.5"),
        (DPOConfig, ["beta=0"], "must be above 0"),
        (RewardModelTrainingConfig, ["prompt_weight=1"], "prompt_weight: unknown key"),
    ],
)
def test_what_does_not_fit_is_named_with_its_remedy(
    recipe: type[SupervisedConfig], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(recipe, arguments)


def test_an_adapter_makes_a_reference_of_the_policy_itself() -> None:
    config = load_config(DPOConfig, ["reference=adapter_off", "engine.lora.rank=4"])
    assert config.engine.lora is not None
    # DPO's own learning rate is still there.
    assert config.engine.learning_rate == 2e-5
