"""What is said of a wrong recipe: the field, its kind, what was given, and the name that was meant."""

from __future__ import annotations

import random

import pytest

from tests.job_configs import JOB_CONFIGS
from troupe.config.evaluation import BenchmarkConfig, EvaluateConfig
from troupe.config.fields import dotted_fields
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.loader import Section, load_config
from troupe.config.mistakes import SYNONYMS, nearest
from troupe.config.serve import ServeConfig
from troupe.config.supervised import DPOConfig, SFTConfig
from troupe.config.tools import ExportConfig
from troupe.errors import ConfigError


def said(config: type[Section], *arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(config, arguments)
    return str(error.value).splitlines()


# -- unknown keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "argument", "meant"),
    [
        # A near spelling in this section comes first, then another section's, then all that are known.
        (GRPOConfig, "rollout.group_sizes=4", "rollout.group_sizes: unknown key; did you mean 'group_size'?"),
        (GRPOConfig, "group_size=4", "group_size: unknown key; did you mean 'rollout.group_size'?"),
        (GRPOConfig, "rollout.learning_rate=1", "rollout.learning_rate: unknown key; did you mean 'policy.learning_rate'?"),
        (PPOConfig, "critic.optimizer.learning_rate=1e-5", "critic.optimizer: unknown key; did you mean 'learning_rate'?"),
        (SFTConfig, "engine.lr=1e-5", "engine.lr: unknown key; did you mean 'learning_rate'?"),
        (SFTConfig, "lr=1e-5", "lr: unknown key; did you mean 'engine.learning_rate'?"),
        (GRPOConfig, "zzzz=1", "zzzz: unknown key; known here: agent, algorithm, checkpoint, consistency, data, environment"),
        (GRPOConfig, "data={type: word_problems, max_prompt_chars: 9}", "data.max_prompt_chars: unknown key; it belongs to type: "),
        (GRPOConfig, "model={type: pretrained, path: x, warm_start: {steps: 0}}", "model.warm_start: unknown key; it belongs to type: scratch"),
    ],
)  # fmt: skip
def test_an_unknown_key_gets_the_name_that_was_meant(config: type[Section], argument: str, meant: str) -> None:
    (sentence,) = said(config, argument)
    assert sentence.startswith(meant)


@pytest.mark.parametrize(
    ("config", "theirs", "ours"),
    [
        (GRPOConfig, "lr", "policy.learning_rate"),
        (GRPOConfig, "model_name_or_path", "model.path"),
        (GRPOConfig, "dataset", "data.path"),
        (GRPOConfig, "num_generations", "rollout.group_size"),
        (GRPOConfig, "max_steps", "steps"),
        (GRPOConfig, "beta", "algorithm.kl.coef"),
        (GRPOConfig, "report_to", "run.trackers"),
        (GRPOConfig, "save_steps", "checkpoint.every"),
        (SFTConfig, "eval_steps", "evaluation.every"),
        (SFTConfig, "num_train_epochs", "epochs"),
        (SFTConfig, "per_device_train_batch_size", "batch_size"),
        (SFTConfig, "max_seq_length", "max_length"),
        (SFTConfig, "output_dir", "run.directory"),
    ],
)
def test_a_name_of_another_library_gets_ours(config: type[Section], theirs: str, ours: str) -> None:
    (sentence,) = said(config, f"{theirs}=1")
    assert sentence == f"{theirs}: unknown key; did you mean {ours!r}?"


def test_every_synonym_is_a_name_that_some_job_has() -> None:
    known = {name for config in JOB_CONFIGS.values() for name, _ in dotted_fields(config)}
    leaves = {name.rpartition(".")[2] for name in known}
    assert [ours for ours in SYNONYMS.values() if ours not in known and ours not in leaves] == []


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("stesp", ["steps", "seed"], "did you mean 'steps'?"),
        ("kl", ["algorithm.kl", "run"], "did you mean 'algorithm.kl'?"),
        ("gs", ["rollout.group_size", "steps"], "did you mean 'rollout.group_size'?"),  # its initials
        ("policy.size", ["data.size", "policy.deep.size"], "did you mean 'policy.deep.size'?"),  # sections in common
        ("qqqq", ["steps", "seed"], ""),
        ("x", [], ""),
    ],
)
def test_the_nearest_name(name: str, known: list[str], sentence: str) -> None:
    assert nearest(name, known) == sentence


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "argument", "sentence"),
    [
        (GRPOConfig, "rollout.temperature=0", "rollout.temperature: it must be above 0 (got 0)"),
        (GRPOConfig, "generator.memory_fraction=1.0", "generator.memory_fraction: it must be below 1 (got 1.0)"),
        (GRPOConfig, "model.hidden_size=100", "model.hidden_size: it must be a multiple of 64 (got 100)"),
        (ServeConfig, "port=70000", "port: it must be at most 65535 (got 70000)"),
        (GRPOConfig, "seed=1.5", "seed: a whole number is needed, but the number 1.5 was given"),
        (GRPOConfig, "steps=ten", "steps: a whole number is needed, but the text 'ten' was given"),
        (GRPOConfig, "steps=null", "steps: a whole number is needed, but null was given"),
        (GRPOConfig, "policy.gradient_checkpointing=1", "policy.gradient_checkpointing: true or false is needed, but the number 1 was given"),
        (GRPOConfig, "rollout.stop=END", "rollout.stop: a list of texts is needed, but the text 'END' was given"),
        (GRPOConfig, "rewards=[length]", "rewards.0: a section is needed, but the text 'length' was given; set its fields, as in rewards.0.fn=..."),
        (GRPOConfig, "policy.betas=[0.9]", "policy.betas.1: this field is required"),
        (GRPOConfig, "run.trackers=[mlflow]", "run.trackers.0: one of wandb, tensorboard is needed, but the text 'mlflow' was given"),
        (GRPOConfig, "placement.mode=seperate", "placement.mode: one of colocated, separate is needed, but the text 'seperate' was given; did you mean 'separate'?"),
        (ExportConfig, "checkpoint=zzzzz", "checkpoint: one of best, latest or a whole number is needed, but the text 'zzzzz' was given"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_its_kind_or_bound(config: type[Section], argument: str, sentence: str) -> None:
    given = [argument, "model=runs/x"] if config is ExportConfig else [argument]
    assert sentence in said(config, *given)


def test_a_long_value_is_cut_and_never_hides_the_sentence() -> None:
    (sentence,) = said(GRPOConfig, f"steps={'x' * 5000}")
    assert sentence.startswith("steps: a whole number is needed, but the text 'xxx")
    assert sentence.endswith("... was given")
    assert len(sentence) < 150


def test_a_field_that_must_be_there_is_named_and_so_is_a_type_that_is_none() -> None:
    assert said(ExportConfig, "dtype=fp32") == ["model: this field is required"]
    assert said(GRPOConfig, "rewards=[{weight: 2}]") == ["rewards.0.fn: this field is required"]
    (sentence,) = said(GRPOConfig, "model={type: gguf}")
    assert sentence == "model.type: there is no type 'gguf'; there are scratch, pretrained"
    assert said(ServeConfig, "scorers=[{name: x}]")[0].startswith("scorers.0: name its type, as in scorers.0.type=")


def test_mistakes_in_several_sections_are_a_line_each_in_the_order_of_the_fields() -> None:
    sentences = said(DPOConfig, "beta=0", "engine.zero_stage=4", "loss=dpo", "run.nam=x")
    assert [sentence.partition(":")[0] for sentence in sentences] == ["run.nam", "engine.zero_stage", "beta", "loss"]


def test_a_rule_between_fields_of_a_section_names_the_section_and_one_of_the_whole_the_recipe() -> None:
    assert said(GRPOConfig, "algorithm={importance: {type: mask}}")[0].startswith("algorithm: importance.type needs")
    assert said(EvaluateConfig, "rouge=true")[0].startswith("the recipe: give either model")
    judged = "preferences={judge: {fn: length}, dimensions: [rhythm]}"
    assert said(BenchmarkConfig, "base=a/b", judged)[0].startswith("preferences.dimensions: what 'rhythm' means")


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_no_mistake_shows_pydantics_own_words(job: str) -> None:
    """Some fields of the job, given a value that no field takes."""
    theirs = ("Input should", "pydantic", "Value error", "valid string", "[type=")
    # `model.type`, say, may be missing beside; a second key that nobody knows makes each of them a mistake.
    names = [name for name, _ in dotted_fields(JOB_CONFIGS[job])]
    for name in random.Random(f"mistakes/{job}").sample(names, 8):
        sentences = said(JOB_CONFIGS[job], f"{name}={{nobody: [1]}}", "no_such_field=1")
        assert [sentence for sentence in sentences if any(words in sentence for words in theirs)] == []
