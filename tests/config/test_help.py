"""`--help`: an overview that fits on a screen, a section, a field, all of it; a name that is not there gets the
nearest.
"""

from __future__ import annotations

import shlex

import pytest

from tests.job_configs import JOB_CONFIGS
from troupe.config.fields import dotted_fields
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.help import help_text
from troupe.config.loader import Section, load_config, wanted_help
from troupe.config.serve import ServeConfig, with_sources
from troupe.errors import ConfigError

JOB = "jobs/train_grpo.py"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("name", JOB_CONFIGS)
def test_the_overview_has_a_line_for_each_section_and_fits_on_a_screen(name: str) -> None:
    lines = help_text(JOB_CONFIGS[name], f"jobs/{name}.py").splitlines()
    assert lines[0].startswith(f"usage: python jobs/{name}.py")
    assert len(lines) <= 60
    for field in JOB_CONFIGS[name].model_fields:
        assert sum(line.startswith(f"  {field} ") for line in lines) == 1


@pytest.mark.parametrize("name", JOB_CONFIGS)
def test_the_examples_of_a_job_are_command_lines_that_it_takes(name: str) -> None:
    config = JOB_CONFIGS[name]
    assert config.examples
    for example in config.examples:
        words = [word for word in shlex.split(example) if word != "--dry-run"]
        load_config(config, with_sources(words) if config is ServeConfig else words)


@pytest.mark.parametrize("name", JOB_CONFIGS)
def test_all_of_it_names_every_field_and_no_line_is_wider_than_the_terminal(name: str) -> None:
    text = help_text(JOB_CONFIGS[name], f"jobs/{name}.py", "all")
    # A list's members are rewards[].fn, sections of any name stages.<name>.job.
    heads = {line.split(" ")[0].replace("[]", "").replace(".<name>", "") for line in text.splitlines()}
    assert {field for field, _ in dotted_fields(JOB_CONFIGS[name]) if not field.endswith(".type")} <= heads
    assert [line for line in text.splitlines() if len(line) > 80 and " " in line.strip()] == []


def test_a_topic_is_that_section_alone_with_every_field_of_it() -> None:
    text = help_text(GRPOConfig, JOB, "rollout")
    assert "rollout.group_size = 8  (a whole number, at least 1)\n    Branches sampled for each prompt." in text
    assert all(line.startswith(("rollout", "    ")) for line in text.splitlines())
    assert help_text(GRPOConfig, JOB, "steps").startswith("steps = 30  (a whole number, at least 1)\n")


def test_the_defaults_are_those_of_the_job_and_not_of_the_section() -> None:
    assert "rollout.group_size = 1  " in help_text(PPOConfig, "jobs/train_ppo.py", "rollout")
    assert "rollout.group_size = 1  " in help_text(PPOConfig, "jobs/train_ppo.py", "all")
    assert help_text(PPOConfig, "jobs/train_ppo.py", "algorithm.kl.coef").startswith("algorithm.kl.coef = 0.05 ")


def test_of_many_types_of_a_section_each_has_a_line_and_a_page_of_its_own() -> None:
    assert "type: jsonl -- A file of rows:" in help_text(GRPOConfig, JOB, "data")
    assert "data.prompt_field" not in help_text(GRPOConfig, JOB, "data")
    assert "data.prompt_field = prompt" in help_text(GRPOConfig, JOB, "data.jsonl")
    assert "model.hidden_size" in help_text(GRPOConfig, JOB, "model")


@pytest.mark.parametrize(
    ("topic", "near"),
    [("rolout", "rollout"), ("policy.lr", "policy.learning_rate"), ("group_size", "rollout.group_size")],
)
def test_a_topic_that_is_not_there_gets_the_name_that_is_meant(topic: str, near: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^--help {topic}: there is no such section or field; did you mean '{near}'"
    ):
        help_text(GRPOConfig, JOB, topic)
    with pytest.raises(ConfigError, match="the nearest is 'consistency'"):
        help_text(GRPOConfig, JOB, "nonsense")


@pytest.mark.parametrize(
    ("arguments", "topic"),
    [
        (["--help"], ""),
        (["recipe.yaml", "-h", "steps=2"], ""),
        (["--help", "recipe.yaml"], ""),
        (["steps=2", "--help", "rollout"], "rollout"),
        (["--help=all"], "all"),
        (["steps=2", "--dry-run"], None),
    ],
)
def test_the_topic_is_the_word_behind_help(arguments: list[str], topic: str | None) -> None:
    assert wanted_help(arguments) == topic
    if topic is not None:
        assert with_sources(arguments) == arguments  # serve takes plain words for models elsewhere


def test_every_field_of_every_job_has_a_sentence() -> None:
    def undocumented(config: type[Section]) -> list[str]:
        return [name for name, info in dotted_fields(config) if not info.description and not name.endswith("type")]

    assert {name: fields for name, config in JOB_CONFIGS.items() if (fields := undocumented(config))} == {}
