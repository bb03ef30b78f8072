"""Export, data preparation and pipelines: what is written where, and what their recipes refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from troupe.config.loader import Section, load_config
from troupe.config.tools import ExportConfig, PipelineConfig, PrepareConfig, Reference, StageConfig
from troupe.errors import ConfigError


def override(name: str, value: Any) -> str:
    return f"{name}={json.dumps(value)}"


def refusal(config: type[Section], *arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(config, arguments)
    return str(error.value)


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "path", "sentence"),
    [
        (["model=runs/a"], "exports/a-bf16", "runs/a -> exports/a-bf16: bf16, one model"),
        (
            ["model=runs/a", "checkpoint=20", "dtype=fp32", "adapter=apart"],
            "exports/a-fp32-adapter",
            "runs/a, checkpoint 20 -> exports/a-fp32-adapter: fp32, adapter apart",
        ),
        (
            ["model=runs/a/checkpoints/step-000020", "push=me/mine"],
            "exports/a-bf16",
            "runs/a/checkpoints/step-000020 -> exports/a-bf16: bf16, one model, then to me/mine on the hub",
        ),
        (["model=a/b", "output=/out", "checkpoint=latest"], "/out", "a/b, checkpoint latest -> /out: bf16, one model"),
    ],
)
def test_an_export_goes_to_a_directory_called_after_its_run(arguments: list[str], path: str, sentence: str) -> None:
    config = load_config(ExportConfig, arguments)
    assert (str(config.path), config.arithmetic()) == (path, sentence)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("prompts=[one]", "prompt 'one' is too short to compare log-probabilities; give two words or more"),
        ("prompts=[]", "prompts: "),
        ("push=mine", "push names a repository as owner/name"),
        ("push=me/", "push names a repository as owner/name"),
        ("push=a/b/c", "push names a repository as owner/name"),
        ("dtype=fp16", "dtype: one of fp32, bf16 is needed, but the text 'fp16' was given"),
        ("max_shard_gb=0", "max_shard_gb: it must be above 0"),
        ("max_gap=0", "max_gap: it must be above 0"),
    ],
)
def test_what_cannot_be_exported_is_refused(argument: str, sentence: str) -> None:
    assert sentence in refusal(ExportConfig, "model=runs/a", argument)


# -- data preparation --------------------------------------------------------------------------------------------------


def test_what_is_split_is_one_sentence() -> None:
    config = load_config(PrepareConfig, ["file=a.jsonl", "key=story_id", "output=out"])
    assert config.arithmetic() == "a.jsonl -> out: train 80 % / val 10 % / test 10 %, no story_id in two files"
    config = load_config(PrepareConfig, ["data.type=docstrings", "output=out", "shares={a: 0.75, b: 0.25}"])
    assert config.arithmetic() == "docstrings -> out: a 75 % / b 25 %"
    assert config.path == Path("out")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["shares={a: 0.5, b: 0.4}"], "add up to 0.9; they must add up to 1"),
        (["shares={a: 1.5, b: -0.5}"], "share a: 1.5 is not possible: a share is above 0 and at most 1"),
        (["shares={a: 1.0, b: 0.0}"], "share b: 0.0 is not possible"),
        (["shares={'../x': 1.0}"], "share ../x: 1.0 is not possible"),
        (["shares={'.x': 1.0}"], "its name is a file's"),
        (["data.type=docstrings"], "give either file (rows stay as they are) or data"),
        (["file=null"], "give either file (rows stay as they are) or data"),
        (["file=null", "data.type=docstrings", "filters=[{field: x, max_words: 3}]"], "docstrings has settings of its own that leave rows out"),
        (["filters=[{field: x}]"], "the filter of 'x' bounds nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(arguments: list[str], sentence: str) -> None:
    assert sentence in refusal(PrepareConfig, "file=a.jsonl", "output=out", *arguments)


def test_three_thirds_are_one() -> None:
    third = 1 / 3
    shares = load_config(
        PrepareConfig, ["file=a.jsonl", "output=out", override("shares", dict.fromkeys("abc", third))]
    ).shares
    assert shares == {"a": third, "b": third, "c": third}


# -- pipelines ---------------------------------------------------------------------------------------------------------

CHAIN = {
    "sft": {"job": "train_sft"},
    "rm": {"job": "train_reward_model", "inputs": {"model.path": "sft"}},
    "ppo": {"job": "train_ppo", "inputs": {"model.path": "sft", "reward_model.path": "rm"}},
    "evaluate": {
        "job": "evaluate",
        "inputs": {"models.sft": "sft", "models.ppo": "ppo", "against": "rm/answers.jsonl"},
    },
}


def chain(*arguments: str) -> PipelineConfig:
    return load_config(PipelineConfig, ["name=n", override("stages", CHAIN), *arguments])


def test_a_stage_needs_those_that_it_takes_something_from_each_once() -> None:
    stages = chain().stages
    assert {name: stage.needs for name, stage in stages.items()} == {
        "sft": [],
        "rm": ["sft"],
        "ppo": ["sft", "rm"],
        "evaluate": ["sft", "ppo", "rm"],
    }
    several = StageConfig(job="evaluate", inputs={"models": ["sft", "ppo", "sft/x"]})
    assert several.needs == ["sft", "ppo"]
    assert several.references() == {"models": [Reference.read("sft"), Reference.read("ppo"), Reference.read("sft/x")]}


def test_a_reference_is_a_stage_or_a_file_inside_what_it_hands_over() -> None:
    assert Reference.read("sft") == Reference(stage="sft")
    assert Reference.read("evaluate/deep/answers.jsonl") == Reference(stage="evaluate", inside="deep/answers.jsonl")


@pytest.mark.parametrize(
    ("arguments", "selected"),
    [
        ([], ["sft", "rm", "ppo", "evaluate"]),
        (["until=rm"], ["sft", "rm"]),
        (["only=[ppo, rm]"], ["rm", "ppo"]),  # in the pipeline's order, not the command line's
        (["only=[ppo, rm]", "until=rm"], ["rm"]),
        (["only=[evaluate]", "until=sft"], []),
    ],
)
def test_only_and_until_choose_stages_in_their_order(arguments: list[str], selected: list[str]) -> None:
    config = chain(*arguments)
    assert config.selected == selected
    assert config.path == Path("runs/n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["until=pppo"], "until names the stage 'pppo', which is not there; did you mean 'ppo'?"),
        (["only=[sft, x]"], "only names the stage 'x', which is not there; known here: sft, rm, ppo, evaluate"),
        (["force=[evaluat]"], "force names the stage 'evaluat', which is not there; did you mean 'evaluate'?"),
        (["stages.sft.inputs.x=ppo"], "stages.sft.inputs: x takes 'ppo', which does not come before it; move that stage up"),
        (["stages.rm.inputs.x=rm"], "stages.rm.inputs: x takes 'rm', which does not come before it"),
        (["stages.rm.inputs.x=[]"], "x must name a stage, `stage/file`, or a list of them (got [])"),
        (["stages.rm.inputs.x=[sft, 3]"], "x must name a stage, `stage/file`, or a list of them (got ['sft', 3])"),
        (["stages.rm.set.run.name=x"], "run.name is given by the pipeline, as <directory>/<name>/<stage>; leave it out"),
        (["stages.rm.set.output=x"], "output is given by the pipeline"),
        (["stages.rm.set.model.path=x"], "model.path stands under both `set` and `inputs`; keep one"),
        (["stages=null"], "stages: "),
        (["name=a/b"], "a pipeline's name is one directory name"),
        (["name=''"], "name: "),
        (["stages.rm.job=null"], "stages.rm.job: text is needed, but null was given"),
    ],
)  # fmt: skip
def test_a_chain_that_cannot_be_run_is_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        chain(*arguments)
    assert sentence in str(error.value)


@pytest.mark.parametrize("name", ["../x", "a b", "", "-a", "a.b", "ü"])
def test_stage_names_cannot_leave_the_directory(name: str) -> None:
    with pytest.raises(ConfigError, match="must be letters, digits"):
        load_config(PipelineConfig, ["name=n", override("stages", {name: {"job": "b"}})])


def test_settings_may_be_nested_or_dotted_and_the_command_line_wins() -> None:
    stages = {"a": {"job": "b", "set": {"policy.lr": 1, "rollout": {"size": 2, "stop": []}}}}
    config = load_config(PipelineConfig, ["name=n", override("stages", stages), "stages.a.set.policy.lr=3"])
    assert config.stages["a"].set == {"policy.lr": 3, "rollout.size": 2, "rollout.stop": []}
