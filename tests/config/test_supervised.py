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


@pytest.mark.parametrize(("samples", "batch", "epochs"), [(100, 7, 1.0), (5, 64, 3.0), (1000, 64, 0.5), (1, 1, 1.0)])
def test_an_epoch_reads_every_sample_and_no_more_than_a_batch_beyond(samples: int, batch: int, epochs: float) -> None:
    read = SupervisedConfig(epochs=epochs, batch_size=batch).num_steps(samples) * batch
    assert samples * epochs <= read < samples * epochs + batch


def test_a_generation_is_off_until_it_is_named_and_then_measures_something() -> None:
    assert load_config(SFTConfig, []).generation is None
    generation = load_config(DPOConfig, ["generation.num_samples=3"]).generation
    assert generation is not None
    assert [metric.label for metric in generation.metrics] == ["rougeL"]
    assert generation.in_words == "greedily"
    with pytest.raises(ConfigError, match=r"generation\.metrics"):
        load_config(SFTConfig, ["generation.metrics=[]"])
    with pytest.raises(ConfigError, match="generation: unknown key"):
        load_config(RewardModelTrainingConfig, ["generation.num_samples=3"])


def test_each_job_starts_from_its_own_data_and_run() -> None:
    jobs = [load_config(job, []) for job in (SFTConfig, RewardModelTrainingConfig, DPOConfig)]
    assert [(config.run.name, config.data.type) for config in jobs] == [
        ("sft", "docstrings"),
        ("reward_model", "docstring_pairs"),
        ("dpo", "docstring_pairs"),
    ]
    assert [config.longest_sequence for config in jobs] == [(512, "max_length")] * 3
    # What SFT makes from nothing it teaches itself, so its model has no warm start.
    assert [config.model.warm_start.steps for config in jobs] == [0, 400, 400]  # type: ignore[union-attr]
