"""Evaluation and benchmark: what models are called, who judges what they say, and which recipes contradict themselves."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from troupe.config.algorithm import ReadingConfig
from troupe.config.evaluation import (
    CRITERIA,
    ROUGE,
    BenchmarkConfig,
    EvaluateConfig,
    PreferencesConfig,
    require_file_name,
    run_name,
)
from troupe.config.loader import load_config
from troupe.config.rollout import EnvironmentConfig, RewardConfig
from troupe.errors import ConfigError

SCORED = {"reward_model": {"path": "runs/reward"}}
GAME = EnvironmentConfig(fn="tic_tac_toe", max_turn_tokens=9)


def config(**given: Any) -> EvaluateConfig:
    return EvaluateConfig(**({"model": "runs/x"} | given))


def refusal(job: type[EvaluateConfig] | type[BenchmarkConfig], *arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(job, arguments)
    return str(error.value)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/sft", "sft"),
        ("runs/sft/", "sft"),
        ("runs/sft/checkpoints/best", "sft"),
        ("/data/sft/checkpoints/step-000010/critic", "sft"),
        ("s3://bucket/runs/sft", "sft"),
        ("checkpoints/mine", "mine"),  # a folder of that name at the beginning is no run's
        ("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"),
    ],
)
def test_a_model_is_called_after_its_run(path: str, name: str) -> None:
    assert run_name(path) == name


def test_here_is_called_after_the_directory_that_it_is(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine" / "deep")
    assert (run_name("."), run_name("..")) == ("deep", "mine")


def test_a_name_becomes_a_files() -> None:
    require_file_name("a b.c", "reference")
    for name in ("", "a/b", ".a", "reference"):
        with pytest.raises(ValueError, match=f"{name!r} cannot name a model: a name becomes a file's"):
            require_file_name(name, "reference")


def test_models_given_as_a_list_are_named_after_their_runs() -> None:
    loaded = load_config(EvaluateConfig, ["models=[runs/sft, runs/ppo/checkpoints/step-000010, Qwen/Qwen2.5-0.5B]"])
    assert list(loaded.named_models) == ["sft", "ppo", "Qwen2.5-0.5B"]
    assert load_config(EvaluateConfig, ["models.a=runs/x", "models.b=runs/y"]).named_models == {
        "a": "runs/x",
        "b": "runs/y",
    }
    assert config(model="runs/x/checkpoints/best").named_models == {"x": "runs/x/checkpoints/best"}


# -- the judge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "judge", "margin"),
    [
        ({}, "accuracy", 0.0),  # the first metric, of which equal values tie
        (SCORED, "reward_model", 0.1),  # in units of its score
        ({**SCORED, "judge": "accuracy"}, "accuracy", 0.0),
        ({**SCORED, "tie_margin": 0.5}, "reward_model", 0.5),
        ({**SCORED, "tie_margin": 0.0}, "reward_model", 0.0),
        ({"rouge": True, "metrics": []}, "rouge", 0.0),
        ({"judge": "my.module:better"}, "my.module:better", 0.0),
    ],
)
def test_the_judge_is_the_reward_model_or_the_first_metric_unless_it_is_named(
    given: dict[str, Any], judge: str, margin: float
) -> None:
    compared = config(against="reference", **given)
    assert (compared.judge_name, compared.margin) == (judge, margin)


def test_games_are_judged_by_how_they_ended() -> None:
    two = {"model": None, "models": {"a": "runs/a", "b": "runs/b"}}
    played = config(**two, environment=GAME, metrics=[], against="a")
    assert played.judge_name == "environment"
    assert played.all_metrics == []
    with pytest.raises(ValidationError, match="judge 'environment' compares games, and 'reference' played none"):
        config(**two, environment=GAME, metrics=[], against="reference")
    with pytest.raises(
        ValidationError, match="contexts are read before an answer, and games and agents have no such place"
    ):
        config(environment=GAME, metrics=[], contexts={"x": "a.jsonl"})


def test_a_judge_that_is_no_metric_yet_becomes_one() -> None:
    labels = [metric.label for metric in config(against="reference", judge="rouge").all_metrics]
    assert labels == ["accuracy", "rouge"]
    # One that is measured anyway, or is the reward model, is not measured twice.
    assert [metric.label for metric in config(against="reference", judge="accuracy").all_metrics] == ["accuracy"]
    assert [metric.label for metric in config(against="reference", **SCORED).all_metrics] == ["accuracy"]
    assert config(rouge=True).all_metrics[-1] == ROUGE


# -- the opponent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("against", "opponent", "file"),
    [
        (None, None, False),
        ("reference", "reference", False),
        ("b", "b", False),
        ("old/answers.jsonl", "answers", True),
        ("answers.json", "answers", True),
    ],
)
def test_an_opponent_is_a_model_the_reference_or_a_file_by_its_stem(
    against: str | None, opponent: str | None, file: bool
) -> None:
    compared = config(model=None, models={"a": "runs/a", "b": "runs/b"}, against=against)
    assert compared.opponent == opponent
    assert (compared.against_file is not None) == file


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({}, "the metric accuracy"),  # math_answer compares with the gold answer
        ({"metrics": [RewardConfig(fn="length")]}, None),
        ({"metrics": [RewardConfig(fn="length")], "rouge": True}, "the metric rouge"),
        ({"metrics": [RewardConfig(fn="length")], "against": "reference"}, "against: reference"),
        ({"metrics": [RewardConfig(fn="length")], **SCORED}, "references"),
        ({"metrics": [RewardConfig(fn="length")], **SCORED, "references": False}, None),
    ],
)
def test_what_cannot_do_without_a_reference_answer_is_named(given: dict[str, Any], needed: str | None) -> None:
    assert config(**given).needs_gold == needed


def test_references_are_scored_by_functions_only_where_they_are_the_opponent() -> None:
    assert config(against="reference").scores_references
    assert not config().scores_references
    assert not config(against="reference", **SCORED).scores_references  # the reward model scores them itself


# -- what an evaluation refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either model (one) or models (several by name)"),
        (["model=runs/x", "models.a=runs/x"], "give either model (one) or models (several by name)"),
        (["models=[a/sft, b/sft]"], "two of the models would be called 'sft'; give them names: models="),
        (["models.reference=runs/x"], "'reference' cannot name a model"),
        (["model=runs/reference"], "'reference' means the data's own answers; give the model another name"),
        (["model=runs/x", "judge=rouge"], "judge 'rouge' compares, and there is nothing to compare with"),
        (["model=runs/x", "against=x"], "against 'x' would compare that model with itself"),
        (["model=runs/x", "against=y"], "against 'y' is not among the models (x); it may also be 'reference'"),
        (["model=runs/x", "against=a/x.jsonl"], "against 'a/x.jsonl' would be called 'x' in the tables"),
        (["model=runs/x", "against=a/reference.jsonl"], "would be called 'reference' in the tables"),
        (["model=runs/x", "contexts={y: a.jsonl}"], "contexts names 'y', which is not among the models (x)"),
        (["model=runs/x", "reading.form=text"], "reading says how contexts are read, and there are none"),
        (["model=runs/x", "metrics=[]"], "nothing would be measured; name metrics, or set rouge: true"),
        (["model=runs/x", "reward_model={path: r, weight: 2}"], "reward_model.weight and relative_to_reference belong"),
        (["model=runs/x", "reward_model={path: r, relative_to_reference: true}"], "so leave both out"),
        (["model=runs/x", "placement.backend=inline", "reward_model={path: r, num_ranks: 2}"], "placement.backend inline runs one engine"),
        (["model=runs/x", "placement.backend=inline", "generator.num_engines=2"], "use backend: ray for more"),
        (["model=runs/x", "against=reference", "judge=reward_model"], "judge reward_model needs reward_model.path"),
        (["model=runs/x", "environment={fn: tic_tac_toe, max_turn_tokens: 128}"], "environment.max_turn_tokens (128) must be at most max_response_tokens (40)"),
        (["model=runs/x", "top_p=0.5"], "top_p and top_k say nothing about greedy answers"),
    ],
)  # fmt: skip
def test_an_evaluation_that_contradicts_itself_is_one_sentence(arguments: list[str], sentence: str) -> None:
    assert sentence in refusal(EvaluateConfig, *arguments)


def test_a_reading_goes_with_a_context() -> None:
    read = config(contexts={"x": "a.jsonl"}, reading=ReadingConfig(form="text"))
    assert read.reading.form == "text"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "1 model answer held-out prompts of word_problems"),
        (SCORED, "1 model answer held-out prompts of word_problems; runs/reward scores the answers"),
        (
            {"model": None, "models": {"a": "x", "b": "y"}, "against": "a"},
            "2 models answer held-out prompts of word_problems; accuracy compares them with a, ties within 0",
        ),
    ],
)
def test_what_will_be_done_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    assert config(**given).arithmetic() == sentence


def test_the_longest_sequence_is_prompt_and_answer() -> None:
    assert config(max_prompt_tokens=7, max_response_tokens=5).longest_sequence[0] == 12


# -- benchmarks --------------------------------------------------------------------------------------------------------

BAD_RECIPES = {
    "nobody": (["metrics=[]"], "nobody would answer; name trained, base, models or endpoints"),
    "two of a name": (["models.run=a/b", "trained=runs/run"], "two of the models are called 'run'"),
    "a name that is no file's": (["models={'a/b': c/d}"], "'a/b' cannot name a model"),
    "the same greedy answer twice": (["base=a/b", "repeats=2"], "repeats (2) at temperature 0 would pay"),
    "a start without a run": (["base=start"], "base start means what the run's recipe starts from"),
    "kept samples of nobody": (["base=a/b", "kept_samples_only=true"], "kept_samples_only means those of a run's"),
    "kept samples unused": (
        ["trained=runs/run", "kept_samples_only=true", "stored_answers=false"],
        "name a run as trained, with stored_answers: true",
    ),
    "no steps": (["trained=runs/run", "steps=[]"], "steps names none; give numbers, or first, last, best, all"),
    "nothing to measure": (["base=a/b", "metrics=[]"], "nothing would be measured; name metrics"),
    "tools": (["base=a/b", "tools=[{fn: calculator}]"], "tools: a benchmark gives none to models behind endpoints"),
    "an unknown chart": (
        ["base=a/b", "charts=[rogue]"],
        "charts names 'rogue', which is not measured; there are accuracy",
    ),
    "an unknown dimension": (
        ["base=a/b", "models.c=c/d", "preferences={judge: {fn: length}, dimensions: [rhythm]}"],
        "what 'rhythm' means is not known; write {rhythm: what is compared}",
    ),
    "no dimension": (
        ["base=a/b", "models.c=c/d", "preferences={judge: {fn: length}, dimensions: {}}"],
        "preferences.dimensions names none; overall is one",
    ),
    "one model compared": (["base=a/b", "preferences={judge: {fn: length}}"], "there is one; name a second"),
    "one of two compared": (
        ["base=a/b", "models.c=c/d", "preferences={judge: {fn: length}, between: [c]}"],
        "there is one; name a second",
    ),
    "an address that is none": (["base=a/b", "upload=bucket/x"], "upload is written s3://bucket/prefix"),
    "costs without prices": (
        ["endpoints.a={base_url: 'http://x/v1', model: m, max_cost: 1}"],
        "max_cost (1) needs prices, or nothing would ever cost anything; set prompt_price and completion_price",
    ),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_a_benchmark_that_contradicts_itself_is_one_sentence(case: str) -> None:
    arguments, sentence = BAD_RECIPES[case]
    assert sentence in refusal(BenchmarkConfig, *arguments)


def benchmark(**given: Any) -> BenchmarkConfig:
    return BenchmarkConfig(**({"trained": "runs/run"} | given))


def test_candidates_are_the_trained_model_its_base_other_models_and_endpoints() -> None:
    endpoint = {"base_url": "http://x/v1", "model": "m"}
    config = benchmark(base="start", models={"b": "a/b"}, endpoints={"gpt": endpoint}, steps=[1, "best"])
    assert (config.trained_name, config.others) == ("run", ["base", "b", "gpt"])
    assert benchmark(trained_as="mine").trained_name == "mine"
    assert config.arithmetic() == (
        "4 models answer held-out prompts of word_problems, 1 each: run at steps 1, best; base; b; gpt"
    )


def test_one_step_may_stand_without_a_list() -> None:
    assert benchmark(steps="best").steps == ["best"]
    assert load_config(BenchmarkConfig, ["trained=runs/run", "steps=10"]).steps == [10]


def test_charts_are_of_what_is_measured_and_of_its_parts() -> None:
    assert benchmark().drawn == ["accuracy"]
    assert benchmark(rouge=True, **SCORED).drawn == ["accuracy", "rouge", "reward"]
    assert benchmark(charts=["accuracy/strict"]).drawn == ["accuracy/strict"]
    assert benchmark(charts=[]).drawn == []
    games = benchmark(metrics=[], environment={"fn": "tic_tac_toe"}, max_response_tokens=200)
    assert games.drawn == ["environment"]


def test_a_judge_asks_once_for_each_dimension_with_its_criterion() -> None:
    remote = RewardConfig(fn="remote_comparison", args={"model": "m", "both_orders": False})
    preferences = PreferencesConfig(judge=remote, dimensions={"plot": CRITERIA["plot"], "wit": "its {jokes}"})
    plot, wit = preferences.judges()
    assert (plot.name, wit.name) == ("plot", "wit")
    # What the recipe says wins over what is usual, and the criterion's braces are no places to fill in.
    assert plot.args["both_orders"] is False
    assert plot.args["reference_field"] == "against"
    assert "in one respect alone, the plot: what happens" in plot.args["template"]
    filled = wit.args["template"].format(prompt="p", first="a", second="b")
    assert "in one respect alone, its {jokes}." in filled
    assert "--- request ---\np\n--- answer A ---\na\n--- answer B ---\nb\n" in filled


def test_a_judge_of_ones_own_gets_its_arguments_alone() -> None:
    own = RewardConfig(fn="my.module:better", args={"x": 1})
    assert [judge.args for judge in PreferencesConfig(judge=own).judges()] == [{"x": 1}]


def test_known_dimensions_may_be_given_by_name() -> None:
    preferences = PreferencesConfig(judge=RewardConfig(fn="length"), dimensions=["language", "overall"])
    assert preferences.dimensions == {name: CRITERIA[name] for name in ("language", "overall")}
    preferences.check(["a", "b"])
    with pytest.raises(ValueError, match=r"preferences.between names 'c@10'; there are a, b"):
        preferences.model_copy(update={"between": ["a", "c@10"]}).check(["a", "b"])
    preferences.model_copy(update={"between": ["a@10", "b"]}).check(["a", "b"])
