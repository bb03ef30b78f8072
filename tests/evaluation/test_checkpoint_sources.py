"""Which steps of a run can be measured: those with a checkpoint, and those whose own answers stand for their model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from troupe.config.evaluation import EvaluateConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.supervised import SFTConfig
from troupe.errors import ConfigError, DataError
from troupe.evaluation.checkpoint_sources import TrainedRun, run_of
from troupe.records import Sample
from troupe.runs.checkpoint import CheckpointStore

SAMPLES = [Sample(sample_id=f"s/{n}", prompt=f"What is {n}?", gold=str(n)) for n in (1, 2)]


def write_run(directory: Path, recipe: Any = None, *, answers: dict[int, list[int]] | None = None) -> Path:
    """A run directory; `answers` maps a step to the numbers of the samples it answered."""
    directory.mkdir(parents=True)
    config = (recipe or GRPOConfig()).model_dump(mode="json")
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    lines = [
        {"step": step, "sample_id": f"s/{n}", "prompt": f"What is {n}?", "text": f"{step}:{n}", "metrics": {}}
        for step, numbers in (answers or {}).items()
        for n in numbers
    ]
    (directory / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def save(run: Path, step: int, metric: float | None = None) -> None:
    store = CheckpointStore(run / "checkpoints", keep_last=9)
    with store.writing(step) as path:
        (path / "config.json").write_text("{}")
    if metric is not None:
        store.record_metric(step, metric)


def config(**given: Any) -> EvaluateConfig:
    """An evaluation in the way of a run with the defaults: greedy answers of at most 40 tokens."""
    return EvaluateConfig(**{"model": "runs/x", **given})


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("runs/x", "runs/x"),
        ("runs/x/checkpoints", "runs/x"),
        ("runs/x/checkpoints/best/critic", "runs/x"),
        ("/a/checkpoints/best", "/a"),
        ("checkpoints/x", "checkpoints/x"),
    ],
)
def test_a_checkpoint_belongs_to_the_run_above_it(path: str, run: str) -> None:
    assert run_of(Path(path)) == Path(run)


def test_steps_are_those_with_a_checkpoint_or_with_answers_to_all_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", answers={0: [1, 2], 3: [1], 5: [1, 2]})
    save(run, 5)
    save(run, 7)
    trained = TrainedRun(run)
    stored = trained.stored_answers(config(), SAMPLES)
    assert sorted(stored) == [0, 5]  # step 3 answered one of the two
    assert {id_: branch.text for id_, branch in stored[5].items()} == {"s/1": "5:1", "s/2": "5:2"}
    found = trained.steps(["all"], SAMPLES, stored)
    assert list(found) == [0, 5, 7]
    assert found[0] is None
    assert str(found[7]).endswith("step-000007")
    assert list(trained.steps(["last", "first"], SAMPLES, stored)) == [0, 7]
    assert list(trained.steps([5, 5, "first"], SAMPLES, stored)) == [0, 5]
    assert str(trained.any_checkpoint).endswith("step-000007")


def test_the_best_step_is_that_of_the_best_metric(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for step, metric in ((1, 0.1), (2, 0.9), (3, 0.5)):
        save(run, step, metric)
    assert list(TrainedRun(run / "checkpoints" / "best").steps(["best"], SAMPLES, {})) == [2]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ([4], "has neither a checkpoint of step 4 nor its answers to all 2 samples; there are 1"),
        (["best"], "keeps no best checkpoint; name first, last, all or numbers in steps"),
    ],
)
def test_a_step_that_is_not_there_is_named_with_those_that_are(
    wanted: list[Any], sentence: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    save(run, 1)
    with pytest.raises(DataError, match=sentence):
        TrainedRun(run).steps(wanted, SAMPLES, {})


def test_a_run_without_either_is_refused_and_so_is_a_directory_that_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert TrainedRun(run).any_checkpoint is None
    with pytest.raises(DataError, match="has no complete checkpoint and no answers to all 2 samples; train with"):
        TrainedRun(run).steps(["all"], SAMPLES, {})
    with pytest.raises(DataError, match="is not a run directory"):
        TrainedRun(tmp_path)


@pytest.mark.parametrize(
    ("given", "difference"),
    [
        ({"max_response_tokens": 41}, "max_response_tokens is 41 here and was 40"),
        ({"temperature": 0.5}, "temperature is 0.5 here and was 0.0"),
        ({"temperature": 0.5, "top_p": 0.9}, "top_p is 0.9 here and was 1.0"),
    ],
)
def test_answers_of_other_sampling_are_not_used_and_the_log_says_why(
    given: dict[str, Any], difference: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = TrainedRun(write_run(tmp_path / "run", answers={0: [1, 2]}))
    with caplog.at_level(logging.INFO):
        assert run.stored_answers(config(**given), SAMPLES) == {}
    assert difference in caplog.text


def test_sampled_answers_are_used_with_the_same_seed_alone(tmp_path: Path) -> None:
    recipe = GRPOConfig(seed=3, evaluation={"temperature": 0.5})  # type: ignore[arg-type]
    run = TrainedRun(write_run(tmp_path / "run", recipe, answers={0: [1, 2]}))
    assert list(run.stored_answers(config(temperature=0.5, seed=3), SAMPLES)) == [0]
    assert run.stored_answers(config(temperature=0.5, seed=4), SAMPLES) == {}


def test_supervised_training_says_how_it_asked_under_generation(tmp_path: Path) -> None:
    recipe = SFTConfig(generation={"max_response_tokens": 9})  # type: ignore[arg-type]
    run = TrainedRun(write_run(tmp_path / "run", recipe, answers={0: [1, 2]}))
    assert list(run.stored_answers(config(max_response_tokens=9), SAMPLES)) == [0]
    assert run.stored_answers(config(), SAMPLES) == {}


def test_an_answer_to_another_prompt_is_none(tmp_path: Path) -> None:
    run = TrainedRun(write_run(tmp_path / "run", answers={0: [1, 2]}))
    other = [SAMPLES[0], Sample(sample_id="s/2", prompt="What is two?")]
    assert run.stored_answers(config(), other) == {}
    assert list(run.stored_answers(config(), SAMPLES[:1])) == [0]


def test_kept_samples_are_those_that_the_run_answered_in_the_order_of_the_data(tmp_path: Path) -> None:
    run = TrainedRun(write_run(tmp_path / "run", answers={0: [2, 1]}))
    third = Sample(sample_id="s/3", prompt="?")
    assert [sample.sample_id for sample in run.kept_samples([*SAMPLES, third])] == ["s/1", "s/2"]
    with pytest.raises(DataError, match=r"has answers to none of the 1 held-out samples; give the run's own data"):
        run.kept_samples([third])


def test_a_run_starts_from_the_model_that_its_recipe_names(tmp_path: Path) -> None:
    named = GRPOConfig(model={"type": "pretrained", "path": "a/b"})  # type: ignore[arg-type]
    assert TrainedRun(write_run(tmp_path / "named", named)).start == "a/b"
    with pytest.raises(ConfigError, match="starts from a model of its own making, which is not kept; leave base out"):
        _ = TrainedRun(write_run(tmp_path / "made")).start
