"""The recipe of an endpoint: what models are called, which step is meant, and what cannot be served together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig, ServedModelConfig, with_sources
from troupe.errors import ConfigError


def recipe(*arguments: str) -> ServeConfig:
    return load_config(ServeConfig, with_sources(arguments))


@pytest.mark.parametrize(
    ("path", "source", "step", "label"),
    [
        ("runs/mine", "runs/mine", None, "mine"),
        ("runs/mine/", "runs/mine/", None, "mine"),
        ("runs/mine@10", "runs/mine", 10, "mine@10"),
        ("runs/mine/checkpoints/step-000010", "runs/mine/checkpoints/step-000010", None, "mine@10"),
        ("runs/mine/checkpoints/best", "runs/mine/checkpoints/best", None, "mine"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", None, "Qwen/Qwen2.5-0.5B"),
        ("s3://bucket/runs/mine", "s3://bucket/runs/mine", None, "mine"),
        ("exports/mine-bf16", "exports/mine-bf16", None, "exports/mine-bf16"),
        ("/data/exports/mine-bf16", "/data/exports/mine-bf16", None, "mine-bf16"),
    ],
)
def test_a_model_is_called_after_its_run_its_step_or_its_hub_name(
    path: str, source: str, step: int | None, label: str
) -> None:
    model = ServedModelConfig(path=path)
    assert (model.source, model.step, model.label) == (source, step, label)
    assert ServedModelConfig(path=path, name="other").label == "other"


@pytest.mark.parametrize("path", ["runs/mine@ten", "runs/mine@", "runs/mine@-1", "runs/mine@1.5"])
def test_what_follows_at_is_a_step(path: str) -> None:
    with pytest.raises(ValidationError, match="what follows @ is a step of the run, a number, not"):
        ServedModelConfig(path=path)


def test_plain_words_are_models_and_everything_else_stays_what_it_was() -> None:
    assert with_sources(["port=1"]) == ["port=1"]
    assert with_sources(["serve.yaml", "runs/a"]) == ["serve.yaml", 'models=[{"path": "runs/a"}]']
    assert with_sources(["--dry-run", "a b"]) == ["--dry-run", 'models=[{"path": "a b"}]']
    assert with_sources(["--help", "runs/a"]) == ["--help", "runs/a"]


def test_the_followed_run_comes_first_and_a_reward_model_is_the_first_scorer() -> None:
    config = recipe("runs/a", "follow=runs/b", "reward_model=runs/rm", "scorers=[{rewards: [{fn: length}]}]")
    assert [model.label for model in config.served] == ["b", "a"]
    assert [scorer.name for scorer in config.all_scorers] == ["reward_model", "rewards"]
    assert config.all_scorers[0].type == "reward_model"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing would be served; give a run, a checkpoint directory or a hub name: python jobs/serve.py"),
        (["runs/a", "follow=runs/a"], "two models are called 'a'; name them: models="),
        (["runs/a@3", "runs/a/checkpoints/step-000003"], "two models are called 'a@3'"),
        (["models=[{path: runs/a, adapters: {b: x}}, {path: runs/b}]"], "two models are called 'b'"),
        (["runs/reward_model", "reward_model=runs/rm"], "two models are called 'reward_model'"),
        (["runs/a", "max_replicas=1", "min_replicas=2"], r"max_replicas \(1\) must be at least min_replicas \(2\)"),
        (["runs/a", "port=0"], "port: it must be at least 1"),
        (["runs/a", "max_length=1"], "max_length: it must be at least 2"),
        (["runs/a", "engine.memory_fraction=2"], "engine.memory_fraction: it must be below 1"),
        (["runs/a", "scorers=[{rewards: []}]"], "scorers.0.rewards"),
        (["runs/a", "prot=9000"], "prot: unknown key; did you mean 'port'"),
    ],
)
def test_what_cannot_be_served_together_is_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        recipe(*arguments)


def test_a_hub_name_is_kept_whole_and_is_another_than_a_runs() -> None:
    assert [model.label for model in recipe("runs/a", "other/a").served] == ["a", "other/a"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs/mine/checkpoints/best"], "mine at http://127.0.0.1:8000/v1, 1 engine(s) a model"),
        (["models=[{path: x, name: a}]", "port=9"], "a at http://127.0.0.1:9/v1, 1 engine(s) a model"),
        (["models=[{path: x, name: a}]", "max_replicas=4"], "a at http://127.0.0.1:8000/v1, 1 to 4 engine(s) a model"),
        (["models=[{path: x, name: a}]", "min_replicas=2"], "a at http://127.0.0.1:8000/v1, 2 engine(s) a model"),
        (["reward_model=runs/rm"], "reward_model at http://127.0.0.1:8000/v1, 1 engine(s) a model"),
    ],
)
def test_what_would_be_started_is_one_sentence(arguments: list[str], sentence: str) -> None:
    assert recipe(*arguments).arithmetic() == sentence


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_queued", 0),
        ("target_requests", 0),
        ("stream_parts_per_s", 0),
        ("request_timeout_s", 0),
        ("max_request_mib", 0),
    ],
)
def test_an_endpoint_without_room_or_time_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field}: it must be"):
        recipe("runs/mine@1", f"{field}={value}")
