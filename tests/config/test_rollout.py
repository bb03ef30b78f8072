"""What is sampled and how it is scored: names in the logs, sampling in words, the metric that chooses a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.rollout import (
    EnvironmentConfig,
    EvaluationConfig,
    RewardConfig,
    RolloutConfig,
    SamplingConfig,
    ServedRewardsConfig,
)
from troupe.config.serve import ServeConfig

GAME = EnvironmentConfig(fn="tic_tac_toe", max_turn_tokens=30)
BY_WINS = EvaluationConfig(metrics=[], best_metric="environment/win")


# -- rewards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "name", "label"),
    [
        ("math_answer", None, "math_answer"),
        ("my.package.rewards:Judge", None, "Judge"),
        ("rewards:mine", "style", "style"),
        ("my.package.length", None, "length"),
    ],
)
def test_a_reward_is_called_after_its_function_unless_it_has_a_name(fn: str, name: str | None, label: str) -> None:
    assert RewardConfig(fn=fn, name=name).label == label


def test_a_reward_of_no_source_is_none() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        RewardConfig(fn="length", sources=[])
    with pytest.raises(ValidationError, match="at least 1 item"):
        ServedRewardsConfig(rewards=[])


def test_the_branches_of_a_step_are_prompts_times_group() -> None:
    assert RolloutConfig(prompts_per_step=3, group_size=5).branches_per_step == 15
    assert RolloutConfig().branches_per_step == 64 * 8


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "settings", "words"),
    [
        ({}, {"temperature": 0.0}, "greedily"),
        ({"temperature": 0.7}, {"temperature": 0.7}, "at temperature 0.7"),
        ({"temperature": 1, "top_p": 0.9}, {"temperature": 1, "top_p": 0.9}, "at temperature 1, top_p 0.9"),
        (
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
            "at temperature 0.6, top_p 0.95, top_k 20",
        ),
        # 1 and 0 are off, and what is off is not sent: an endpoint may refuse a field that it does not know.
        ({"temperature": 1, "top_p": 1.0, "top_k": 0}, {"temperature": 1}, "at temperature 1"),
    ],
)
def test_only_settings_that_are_on_are_named(given: dict[str, Any], settings: dict[str, float], words: str) -> None:
    config = SamplingConfig(**given)
    assert (config.sampling, config.in_words) == (settings, words)


@pytest.mark.parametrize("given", [{"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.0, "top_p": 0.5, "top_k": 1}])
def test_greedy_answers_have_no_top_p(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="top_p and top_k say nothing about greedy answers; raise temperature"):
        SamplingConfig(**given)


# -- the metric of the best checkpoint ---------------------------------------------------------------------------------


def test_the_best_checkpoint_is_by_the_first_metric_or_the_reward_model_or_what_is_named() -> None:
    two = [RewardConfig(fn="rouge"), RewardConfig(fn="length", name="short")]
    assert EvaluationConfig(metrics=two).best == "rouge"
    assert EvaluationConfig(metrics=two, best_metric="short").best == "short"
    assert EvaluationConfig(metrics=[]).best == "reward_model"


@pytest.mark.parametrize(
    ("best", "found"),
    [
        ("accuracy", (None, "accuracy")),
        ("other/accuracy", ("other", "accuracy")),
        ("environment/win", (None, "environment/win")),  # a part of a metric, not a set
        ("other/environment/win", ("other", "environment/win")),
        ("other", (None, "other")),
    ],
)
def test_a_further_held_out_set_may_stand_before_the_metric(best: str, found: tuple[str | None, str]) -> None:
    assert EvaluationConfig(best_metric=best).best_in(["other", "third"]) == found


@pytest.mark.parametrize(
    ("given", "parts", "sets", "sentence"),
    [
        ({"metrics": []}, [], [], "evaluation.metrics must name at least one metric"),
        ({"metrics": []}, ["environment"], [], r"name the metric of the best checkpoint in evaluation.best_metric \(environment\)"),
        ({"best_metric": "acuracy"}, [], [], r"best_metric 'acuracy' is not among the metrics \(accuracy\)"),
        ({"best_metric": "other/accuracy"}, [], [], "best_metric 'other/accuracy' is not among"),
        ({"best_metric": "other/x"}, [], ["other"], "best_metric 'other/x' is not among"),
    ],
)  # fmt: skip
def test_a_metric_that_nothing_measures_chooses_nothing(
    given: dict[str, Any], parts: list[str], sets: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        EvaluationConfig(**given).check(parts, sets)


@pytest.mark.parametrize(
    ("given", "parts", "sets"),
    [
        ({}, [], []),
        ({"metrics": []}, ["reward_model"], []),
        ({"best_metric": "environment/win"}, ["environment"], []),
        ({"best_metric": "accuracy/strict"}, [], []),  # a part of a metric, which only an answer shows
        ({"best_metric": "other/accuracy"}, [], ["other"]),
    ],
)
def test_a_metric_that_something_measures_is_taken(given: dict[str, Any], parts: list[str], sets: list[str]) -> None:
    EvaluationConfig(**given).check(parts, sets)


# -- an environment ----------------------------------------------------------------------------------------------------


def test_an_environment_is_reward_enough() -> None:
    config = GRPOConfig(environment=GAME, rewards=[], evaluation=BY_WINS)
    assert config.evaluation.best == "environment/win"
    assert config.model_parts == ["environment"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"rollout": RolloutConfig(max_response_tokens=20)},
            r"max_turn_tokens \(30\) must be at most rollout\.max_resp",
        ),
        (
            {"evaluation": EvaluationConfig(metrics=[])},
            r"name the metric of the best checkpoint in evaluation.best_metric \(environment\)",
        ),
        ({"evaluation": BY_WINS.model_copy(update={"max_response_tokens": 9})}, r"at most evaluation\.max_response"),
        (
            {"environment": None},
            "rewards must name at least one function, .* or set reward_model, perplexity_reward or environment",
        ),
        ({"environment": None, "rewards": GRPOConfig().rewards}, "must name at least one metric"),
    ],
)
def test_an_environments_settings_must_fit_the_recipe(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GRPOConfig(**{"environment": GAME, "rewards": [], "evaluation": BY_WINS, **settings})


def test_a_turn_may_take_the_whole_game_and_no_token_more() -> None:
    GAME.check_limit(30)
    with pytest.raises(
        ValueError, match=r"environment.max_turn_tokens \(30\) must be at most max_response_tokens \(29\)"
    ):
        GAME.check_limit(29, "max_response_tokens")


def test_a_turn_without_a_limit_fits_into_every_game() -> None:
    game = EnvironmentConfig(fn="tic_tac_toe")
    game.check_limit(29)
    assert game.turn_tokens == 128


# -- what is served ----------------------------------------------------------------------------------------------------


def test_scorers_are_reward_models_or_functions_and_batch_in_tokens() -> None:
    scorers = load_config(
        ServeConfig, ["scorers=[{path: runs/rm, batching: {row_tokens: 64}}, {rewards: [{fn: length}], name: short}]"]
    ).scorers
    assert [(scorer.type, scorer.name) for scorer in scorers] == [
        ("reward_model", "reward_model"),
        ("rewards", "short"),
    ]
    assert scorers[0].batching.row_tokens == 64  # type: ignore[union-attr]
