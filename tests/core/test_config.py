"""Recipes: later wins, mistakes are named with their remedy, what is saved can be used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config import dump_config, help_text, load_config
from core.errors import ConfigError
from core.recipes import GRPOConfig


def test_an_empty_recipe_is_a_good_run() -> None:
    assert load_config(GRPOConfig, []) == GRPOConfig()


def test_of_a_file_and_two_overrides_the_latest_wins(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("steps: 7\nrollout: {group_size: 4}\n")
    config = load_config(GRPOConfig, [str(file), "steps=8", "steps=9"])
    assert (config.steps, config.rollout.group_size) == (9, 4)


def test_the_dumped_recipe_is_a_recipe_that_says_the_same(tmp_path: Path) -> None:
    config = load_config(GRPOConfig, ["steps=5", "rewards=[{fn: length, weight: 0.1, args: {target: 9}}]"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(GRPOConfig, [str(file)]) == config


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("rollout.group_sise=4", "rollout.group_sise: unknown key; did you mean 'group_size'?"),
        ("stepz=4", "stepz: unknown key; did you mean 'steps'?"),
        ("algorithm.kl.coeff=0.1", "algorithm.kl.coeff: unknown key; did you mean 'coef'?"),
        ("steps=0", "steps: Input should be greater than or equal to 1 (got 0)"),
    ],
)
def test_a_mistake_is_one_sentence_with_path_value_and_remedy(argument: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(GRPOConfig, [argument])
    assert str(error.value) == sentence


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(GRPOConfig, ["steps=0", "sede=1"])
    assert len(str(error.value).splitlines()) == 2


def test_a_rule_between_fields_names_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"minibatches \(9\) must be at most rollout.prompts_per_step \(4\)"):
        load_config(GRPOConfig, ["algorithm.minibatches=9", "rollout.prompts_per_step=4"])


def test_a_missing_recipe_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no recipe file 'nowhere\.yaml'"):
        load_config(GRPOConfig, ["nowhere.yaml"])


def test_a_frozen_section_cannot_be_changed_in_flight() -> None:
    with pytest.raises(ValueError, match="frozen"):
        GRPOConfig().steps = 3  # type: ignore[misc]


def test_help_tells_every_field_with_its_sentence() -> None:
    text = help_text(GRPOConfig, "jobs/train_grpo.py")
    assert "rollout.group_size: int = 8\n      Branches sampled for each prompt." in text
    assert text.startswith("usage: python jobs/train_grpo.py [recipe.yaml ...]")
