"""Every command line gives a config or a sentence; every field refuses what it cannot hold; what is written is what
is read.
"""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.config.odd_values import ODD, TEXTS, odd_argument, value_for
from tests.job_configs import JOB_CONFIGS
from troupe.config.evaluation import EvaluateConfig
from troupe.config.fields import dotted_fields, sections_of
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import Section, dump_config, load_config
from troupe.config.serve import ServeConfig, with_sources
from troupe.config.supervised import SFTConfig
from troupe.config.values import LIMITS, PATHS, check_value
from troupe.config.yaml_text import read_yaml
from troupe.errors import ConfigError


def base(job: str) -> list[str]:
    """A command line that the job takes."""
    words = [word for word in shlex.split(JOB_CONFIGS[job].examples[0]) if word != "--dry-run"]
    return with_sources(words) if job == "serve" else words


def loaded(config: type[Section], arguments: list[str]) -> Section | None:
    """The config, or None where the arguments are refused; whatever else is raised is a fault."""
    try:
        return load_config(config, arguments)
    except ConfigError as error:
        told = str(error)
        assert told
        assert "Traceback" not in told
        assert not any(
            name in told for name in ("DictConfig", "ListConfig", "full_key", "object_type", "Input should be")
        )
        return None


# -- odd command lines and files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_an_odd_command_line_gives_a_config_or_sentences(job: str) -> None:
    rng, fields = random.Random(f"odd/{job}"), [name for name, _ in dotted_fields(JOB_CONFIGS[job])]
    for _ in range(50):
        loaded(JOB_CONFIGS[job], [odd_argument(rng, fields) for _ in range(rng.choice([1, 1, 2]))])


@pytest.mark.parametrize("job", ["train_grpo", "serve", "run_pipeline", "benchmark"])
def test_an_odd_file_gives_a_config_or_sentences(job: str, tmp_path: Path) -> None:
    rng, file = random.Random(f"files/{job}"), tmp_path / "odd.yaml"
    sections = [name for name, info in JOB_CONFIGS[job].model_fields.items() if sections_of(info.annotation)]
    for text in [*ODD, *(f"{name}: {rng.choice(ODD)}" for name in sections * 2)]:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        loaded(JOB_CONFIGS[job], [str(file)])
    for binary in (b"\xff\xfe\x00", b"\x80", b"steps: 1\r\x00"):
        file.write_bytes(binary)
        assert loaded(JOB_CONFIGS[job], [str(file)]) is None


@pytest.mark.parametrize(
    ("recipe", "argument", "sentence"),
    [
        (GRPOConfig, "rollout=[1]", "rollout: a section is needed, but the list [1] was given; set its fields, as in " "rollout.prompts_per_step=..."),
        (GRPOConfig, "rollout=3", "rollout: a section is needed, but the number 3 was given; set its fields, as in " "rollout.prompts_per_step=..."),
        (GRPOConfig, "rewards.fn=length", "rewards: a list of sections is needed, but the section {'fn': 'length'} " "was given"),
        (GRPOConfig, "steps=[3]", "steps: a whole number is needed, but the list [3] was given"),
        (GRPOConfig, "run.name=2026", """run.name: text is needed, but the number 2026 was given; in quotes it is text: run.name='"2026"'"""),
        (GRPOConfig, "algorithm.std=smple", "algorithm.std: one of sample, population is needed, but the text " "'smple' was given; did you mean 'sample'?"),
        (ServeConfig, "models=runs/x", "models: a list of sections is needed, but the text 'runs/x' was given"),
        (ServeConfig, "engine=null", "engine: a section is needed, but null was given; set its fields, as in " "engine.tensor_parallel_size=..."),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_told_with_the_field_and_what_it_is(
    recipe: type[Section], argument: str, sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(recipe, [argument])
    assert sentence in str(error.value).splitlines()


def test_a_section_that_one_file_makes_a_list_and_the_next_a_section_is_what_the_last_says(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("rollout: [1]\nsteps: {a: 1}\n")
    assert load_config(GRPOConfig, [str(file), "rollout.group_size=4", "steps=2"]).rollout.group_size == 4


# -- strict types and bounds -------------------------------------------------------------------------------------------


NOT_WHOLE = ["yes", "true", "1.0", "12:30:45", "0x1F", "010", "'1'", "1e2", ".inf"]


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_a_whole_number_is_written_in_decimal_digits_and_no_other_way(job: str) -> None:
    for name, info in JOB_CONFIGS[job].model_fields.items():
        if int in (info.annotation, *get_args(info.annotation)):
            for text in NOT_WHOLE:
                assert loaded(JOB_CONFIGS[job], [*base(job), f"{name}={text}"]) is None, f"{name}={text}"


def test_whole_numbers_may_be_grouped_and_floats_be_whole_or_in_any_decimal_form() -> None:
    assert load_config(GRPOConfig, ["steps=1_000"]).steps == 1000
    for text in ("1e-6", "0.000001", "1.0e-06", ".000001"):
        assert load_config(GRPOConfig, [f"policy.learning_rate={text}"]).policy.learning_rate == 1e-6
    assert load_config(SFTConfig, ["epochs=2"]).epochs == 2


@pytest.mark.parametrize(
    "argument",
    [
        "rollout.temperature=1e26", "policy.learning_rate=1e400", "policy.learning_rate=3", "policy.learning_rate=.nan", "seed=-1",
        "rollout.timeout_s=1e10", "policy.num_ranks=1000000", "rewards=[{fn: length, weight: .inf}]", f"steps={10**13}", f"steps={'9' * 400}",
        "policy.betas=[0.9, 1.5]", "policy.zero_stage=true", "policy.zero_stage=1.0", "checkpoint.every=1e2", "policy.gradient_checkpointing=1",
        'run.directory="a\\0b"', "model.path='$(id)'", "model.path='`id`'", "model.path='$HOME/x'", "model.path='~/x'", "data.path=' " "x'", "data.path=''",
        'run.directory="a\\nb"', 'rollout.stop=["\\0"]', 'rewards=[{fn: length, args: {a: {b: ["\\0"]}}}]', "rewards=[{fn: " "length, " "args: {1: 2}}]",
    ],
)  # fmt: skip
def test_what_no_run_could_mean_is_refused(argument: str) -> None:
    assert loaded(GRPOConfig, [argument]) is None


@pytest.mark.parametrize(
    "argument", ["model='$(id)'", "models={a: '$(id)'}", 'model="a\\0"', "output='`x`'", 'against="a\\tb.jsonl"']
)
def test_a_path_is_one_in_every_job(argument: str) -> None:
    assert loaded(EvaluateConfig, [argument] if argument.startswith("model") else ["model=x", argument]) is None


def test_a_shell_reads_dollars_in_prompts_and_rewards_as_text() -> None:
    template = load_config(SFTConfig, ["data.path=x.jsonl", "data.system_prompt='cost: $(5) `a` ~'"]).data.system_prompt
    assert template == "cost: $(5) `a` ~"


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_every_number_has_a_least_and_a_most(job: str) -> None:
    for name, info in dotted_fields(JOB_CONFIGS[job]):
        if {int, float} & {info.annotation, *get_args(info.annotation)}:
            for value in (10**15 * 9999, -(10**15) * 9999):
                with pytest.raises(ValueError, match="it must be between"):
                    check_value(name.rpartition(".")[2], value)


def test_the_names_that_limits_and_paths_go_by_are_names_of_fields() -> None:
    names = {name.rpartition(".")[2] for config in JOB_CONFIGS.values() for name, _ in dotted_fields(config)}
    assert [limit for limit in LIMITS if not any(name.endswith(limit) for name in names)] == []
    alternatives = PATHS.pattern.split(")")[-1].strip("|").split("|")
    assert [one for one in alternatives if one not in names] == []


def test_every_field_whose_sentence_is_of_a_file_or_directory_is_held_to_be_a_path() -> None:
    told = (
        "Directory ",
        "File of",
        "JSONL file ",
        "A run directory",
        "Run directory",
        "Training file",
        "Held-out file",
    )
    for config in JOB_CONFIGS.values():
        for name, info in dotted_fields(config):
            if str in (info.annotation, *get_args(info.annotation)) and str(info.description).startswith(told):
                assert PATHS.fullmatch(name.rpartition(".")[2]), name


# -- what is written is what is read -----------------------------------------------------------------------------------


def reread(config: Section, file: Path) -> Section:
    file.write_text(dump_config(config))
    return load_config(type(config), [str(file)])


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_the_dump_of_any_config_reads_as_that_config(job: str, tmp_path: Path) -> None:
    rng, infos = random.Random(f"dump/{job}"), dict(dotted_fields(JOB_CONFIGS[job]))
    for _ in range(2):
        arguments, config = base(job), load_config(JOB_CONFIGS[job], base(job))
        for name in rng.sample(list(infos), 10):
            argument = f"{name}={json.dumps(value_for(infos[name], rng))}"
            changed = loaded(JOB_CONFIGS[job], [*arguments, argument])
            arguments, config = ([*arguments, argument], changed) if changed is not None else (arguments, config)
        assert reread(config, tmp_path / "config.yaml") == config, arguments


@pytest.mark.parametrize("text", [text for text in TEXTS if "\x00" not in text])
def test_a_text_is_read_as_it_was_written(text: str, tmp_path: Path) -> None:
    config = GRPOConfig.model_validate(
        {"rollout": {"stop": [text]}, "rewards": [{"fn": "f", "args": {"a": {"b": text}}}]}
    )
    assert reread(config, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "arguments",
    [
        ["perplexity_reward.weight=0"],
        ["perplexity_reward.kind=absolute"],
        ["perplexity_reward={kind: improvement, transform: binary}"],
        ["policy.learning_rate=1e-6", "algorithm.kl.coef=1e-7"],
    ],
)
def test_a_section_with_rules_about_what_was_set_reads_as_it_was_written(arguments: list[str], tmp_path: Path) -> None:
    config = load_config(GRPOConfig, arguments)
    assert reread(config, tmp_path / "config.yaml") == config


def test_contexts_read_as_they_were_written(tmp_path: Path) -> None:
    for arguments in ([], ["contexts={x: a.jsonl}"], ["contexts={x: a.jsonl}", "reading.prompt_end=' '"]):
        config = load_config(EvaluateConfig, ["model=runs/x", *arguments])
        assert reread(config, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("12:30:45", "12:30:45"), ("1_0", 10), ("-3", -3), ("1.5e3", 1500.0), ("1e-6", 1e-6), ("08", "08")],
)
def test_numbers_are_decimal(text: str, value: Any) -> None:
    assert read_yaml(text) == value
