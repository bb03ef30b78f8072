"""Recipes: later wins, mistakes are named with their remedy, what is saved can be used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from troupe.config.grpo import GRPOConfig, PPOConfig, RLOOConfig
from troupe.config.loader import dump_config, load_config
from troupe.config.serve import ServeConfig
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig
from troupe.config.tools import PrepareConfig
from troupe.errors import ConfigError


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
        ("steps=0", "steps: it must be at least 1 (got 0)"),
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


# -- a section that is given in part -----------------------------------------------------------------------------


def test_one_setting_of_a_section_leaves_what_the_recipe_says_of_the_others() -> None:
    config = load_config(PPOConfig, ["algorithm.minibatches=1"])
    assert config.algorithm == PPOConfig().algorithm.model_copy(update={"minibatches": 1})
    # Two levels down: RLOO's coefficient changes, its placement in the reward does not.
    config = load_config(RLOOConfig, ["algorithm.kl.coef=0.2"])
    assert (config.algorithm.kl.coef, config.algorithm.kl.placement) == (0.2, "reward")
    assert config.algorithm.advantage == "rloo"


def test_a_file_and_an_override_of_one_section_both_count(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("algorithm: {epochs: 2, kl: {coef: 0.3}}\n")
    algorithm = load_config(PPOConfig, [str(file), "algorithm.kl.adaptive.target=6"]).algorithm
    assert (algorithm.epochs, algorithm.minibatches, algorithm.advantage) == (2, 2, "gae")
    assert (algorithm.kl.coef, algorithm.kl.placement) == (0.3, "reward")
    assert algorithm.kl.adaptive is not None
    assert algorithm.kl.adaptive.target == 6


def test_a_section_may_be_set_to_null_and_a_default_set_back() -> None:
    assert load_config(PPOConfig, ["critic.value_clip=null"]).critic.value_clip is None
    assert load_config(PPOConfig, ["algorithm.clip_high=0.28"]).algorithm.clip_high == 0.28


@pytest.mark.parametrize("arguments", [["data.seed=3"], ["data.type=docstring_pairs", "data.seed=3"]])
def test_a_field_of_a_kind_of_section_needs_not_name_the_kind_that_is_the_default(arguments: list[str]) -> None:
    config = load_config(RewardModelTrainingConfig, arguments)
    assert (config.data.type, config.data.seed) == ("docstring_pairs", 3)  # type: ignore[union-attr]


def test_another_type_replaces_the_section_and_takes_nothing_from_it() -> None:
    # The default of SFT has no warm start; a pretrained model knows none, and scratch keeps it off.
    assert load_config(SFTConfig, ["model.hidden_size=64"]).model.warm_start.steps == 0  # type: ignore[union-attr]
    assert load_config(SFTConfig, ["model.type=pretrained", "model.path=here"]).model.path == "here"  # type: ignore[union-attr]
    config = load_config(DPOConfig, ["data={type: jsonl, path: a.jsonl}"])
    assert config.data == type(config.data)(path="a.jsonl")
    with pytest.raises(ConfigError, match="hidden_size: unknown key"):
        load_config(SFTConfig, ["model.type=pretrained", "model.path=here", "model.hidden_size=64"])


def test_a_mistake_in_a_part_of_a_section_is_named_where_it_was_made() -> None:
    with pytest.raises(ConfigError, match=r"^algorithm\.kl\.coeff: unknown key; did you mean 'coef'\?$"):
        load_config(PPOConfig, ["algorithm.kl.coeff=1"])
    with pytest.raises(ConfigError, match=r"^algorithm: a section is needed, but the text 'fast' was given"):
        load_config(PPOConfig, ["algorithm=fast"])


# -- a type that follows from what is given ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "arguments", "section", "kind"),
    [
        (GRPOConfig, ["model.path=Qwen/Qwen2.5-0.5B"], "model", "pretrained"),
        (SFTConfig, ["model.path=runs/sft", "model.trust_remote_code=true"], "model", "pretrained"),
        (GRPOConfig, ["model.hidden_size=64"], "model", "scratch"),
        (GRPOConfig, ["data.path=my.jsonl"], "data", "jsonl"),
        (DPOConfig, ["data.path=my.jsonl", "data.chosen_field=a", "data.rejected_field=b"], "data", "jsonl"),
        (GRPOConfig, ["data.path=openai/gsm8k", "data.num_train=5"], "data", "gsm8k"),
        (GRPOConfig, ["data.path=chats", "data.single_turn=true"], "data", "smoltalk"),
        (GRPOConfig, ["data.num_train=5"], "data", "word_problems"),
        (PrepareConfig, ["output=o", "data.path=my.jsonl"], "data", "jsonl"),
    ],
)
def test_the_type_of_a_section_follows_from_its_fields(recipe, arguments: list[str], section: str, kind: str) -> None:
    assert getattr(load_config(recipe, arguments), section).type == kind


def test_the_type_of_a_section_in_a_list_follows_from_its_fields_too() -> None:
    scorers = load_config(ServeConfig, ["scorers=[{path: runs/rm}, {rewards: [{fn: length}]}]"]).scorers
    assert [scorer.type for scorer in scorers] == ["reward_model", "rewards"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model.pth=x"], "model.pth: unknown key; did you mean 'model.path'?"),
        (["model.hidden_size=64", "model.path=x"], "model.path: unknown key; it belongs to type: pretrained"),
        (["data.type=jsonll"], "data.type: there is no type 'jsonll'; did you mean 'jsonl'?"),
    ],
)
def test_a_key_of_another_type_is_told_with_that_type(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(GRPOConfig, arguments)
    assert str(error.value) == sentence
