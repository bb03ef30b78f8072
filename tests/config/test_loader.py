"""Recipes: later wins, mistakes are named with their remedy, what is saved can be used again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from troupe.config.grpo import GRPOConfig, PPOConfig, RLOOConfig
from troupe.config.loader import dump_config, laid_onto, load_config, parse_command_line, read_layers
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


# -- layers ------------------------------------------------------------------------------------------------------


LAYERS = [
    {},
    {"a": 1, "b": {"c": 2, "d": {"e": 3}}},
    {"b": {"c": 9}, "f": [1, 2]},
    {"b": {"d": {"g": 4}}, "f": [3]},
    {"b": None, "a": {"x": 1}},
    {"b": [1]},
]


def test_sections_meet_field_by_field_and_whatever_else_meets_is_replaced() -> None:
    base = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": [1, 2]}
    assert laid_onto(base, {"b": {"d": {"g": 4}}, "f": [3]}) == {"a": 1, "b": {"c": 2, "d": {"e": 3, "g": 4}}, "f": [3]}
    assert laid_onto(base, {"b": None}) == {"a": 1, "b": None, "f": [1, 2]}
    assert base == {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": [1, 2]}  # neither side is changed


@pytest.mark.parametrize("top", LAYERS)
@pytest.mark.parametrize("base", LAYERS)
def test_laying_twice_changes_nothing_and_an_empty_layer_neither(base: dict[str, Any], top: dict[str, Any]) -> None:
    once = laid_onto(base, top)
    assert laid_onto(once, top) == once
    assert laid_onto(base, {}) == base
    assert laid_onto({}, top) == top


def test_arguments_are_laid_in_their_order_whether_files_or_overrides(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yml"
    first.write_text("a: {x: 1, y: 1}\n")
    second.write_text("a: {y: 2}\nb: '${a.x}'\n")
    assert read_layers([str(first), str(second), "a.x=3"]) == {"a": {"x": 3, "y": 2}, "b": "${a.x}"}
    assert read_layers(["a.x=3", str(second), str(first)]) == {"a": {"x": 1, "y": 1}, "b": "${a.x}"}
    assert read_layers([]) == {}


def test_an_override_may_hold_equals_signs_and_a_file_too(tmp_path: Path) -> None:
    assert read_layers(["a='x=y=z'"]) == {"a": "x=y=z"}
    file = tmp_path / "lr=0.1.yaml"
    file.write_text("a: 1\n")
    assert read_layers([str(file)]) == {"a": 1}


def test_an_empty_file_says_nothing_and_a_reference_is_to_what_the_last_layer_says(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing but a comment\n")
    (tmp_path / "refers.yaml").write_text("steps: 7\nseed: '${steps}'\n")
    config = load_config(GRPOConfig, [str(tmp_path / "empty.yaml"), str(tmp_path / "refers.yaml"), "steps=8"])
    assert (config.steps, config.seed) == (8, 8)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("steps", "there is no recipe file 'steps'; give a YAML file, or an override of the form section.field=value"),
        ("=3", "'=3' is not an override of the form section.field=value"),
        ("a..b=3", "'a..b=3' is not an override of the form section.field=value"),
        ("a.=3", "is not an override"),
        (" =3", "is not an override"),
        ("rewards=[{fn: x}", "rewards: '[{fn: x}' is not valid YAML"),
        ("steps=\ud800", "is not text in UTF-8"),
        ("seed=${stepz}", "the recipe cannot be resolved: Interpolation key 'stepz' not found"),
        ("run.name=${oc.env:TROUPE_NO_SUCH_VARIABLE}", "the recipe cannot be resolved: "),
    ],
)
def test_an_argument_that_is_none_is_named(argument: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(GRPOConfig, [argument])
    assert sentence in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[1, 2]", "is not a recipe: it holds list, not settings as `name: value`"),
        (b"steps", "is not a recipe: it holds str"),
        (b"steps: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"steps: 1\nsteps: 2", "is not valid YAML: found duplicate key"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.yaml") as error:
        load_config(GRPOConfig, [str(file)])
    assert sentence in str(error.value)


def test_a_directory_is_no_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recipe file"):
        load_config(GRPOConfig, [str(tmp_path)])


def test_a_key_in_a_recipe_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(GRPOConfig, ["rewards=[{fn: x, args: {api_key: sk-0123456789abcdef}}]"])
    assert "sk-0123456789abcdef" not in str(error.value)


# -- the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ([], set()),
        (["steps=3", "--dry-run"], {"--dry-run"}),
        (["--recipe-only", "steps=3", "--dry-run"], {"--dry-run", "--recipe-only"}),
    ],
)
def test_flags_may_stand_anywhere_and_are_no_settings(
    arguments: list[str], flags: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    config, found = parse_command_line(GRPOConfig, "jobs/train_grpo.py")
    assert (found, config.steps) == (flags, 3 if "steps=3" in arguments else GRPOConfig().steps)


def test_an_unknown_flag_is_taken_for_a_recipe_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--dryrun"])
    with pytest.raises(ConfigError, match="there is no recipe file '--dryrun'"):
        parse_command_line(GRPOConfig, "jobs/train_grpo.py")


def test_help_about_a_topic_is_printed_and_nothing_else_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "no_such.yaml", "--help", "steps"])
    with pytest.raises(SystemExit) as ended:
        parse_command_line(GRPOConfig, "jobs/train_grpo.py")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("steps = 30  (a whole number, at least 1)")
