"""What an evaluation makes of games that were played: their outcomes stand beside what the reward functions say."""

from __future__ import annotations

from typing import Any

import pytest

from troupe.config.evaluation import EvaluateConfig
from troupe.config.rollout import EnvironmentConfig, RewardConfig
from troupe.evaluation.comparison import compare_all
from troupe.evaluation.plan import Candidate, EvaluationPlan
from troupe.evaluation.scores import Scores, answer_rows, estimate_metrics, function_scores
from troupe.records import Branch, Sample, Score
from troupe.rewards.build import build_rewards

SAMPLES = [Sample(sample_id=f"game/{index}", prompt="Play.") for index in range(4)]
GAMES = EnvironmentConfig(fn="tic_tac_toe", max_turn_tokens=20)


def game(won: bool) -> Branch:
    """Two tokens of the model and three of the environment."""
    parts = {"environment": float(won), "environment/win": float(won), "environment/failed": 0.0}
    mask = [True, False, False, False, True]
    return Branch(token_ids=[1] * 5, text="B2 and C3", loss_mask=mask, outcome=Score(value=float(won), parts=parts))


def config(**settings: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"models": {"before": "a", "after": "b"}, "environment": GAMES, "metrics": [], **settings})


@pytest.mark.parametrize("metrics", [[], [RewardConfig(fn="length", args={"limit": 100})]])
def test_wins_are_measured_and_compared_with_and_without_reward_functions(metrics: list[RewardConfig]) -> None:
    recipe = config(against="before", judge="environment/win", metrics=metrics)
    plan = EvaluationPlan(
        samples=SAMPLES,
        too_long=0,
        candidates=[Candidate(name=name, kind="model", path=name) for name in ("before", "after")],
        rewards=build_rewards(metrics) if metrics else None,
    )
    wins = {"before": [0, 0, 1, 0], "after": [1, 0, 1, 1]}
    answers = {
        (name, 0): {sample.sample_id: game(bool(won)) for sample, won in zip(SAMPLES, of_name, strict=True)}
        for name, of_name in wins.items()
    }
    scores = Scores(rewards={}, functions=function_scores(recipe, plan, answers))
    measured = estimate_metrics(answer_rows(plan, "after", answers, scores), seed=0)
    assert measured["environment/win"].mean == 0.75
    assert measured["response_tokens"].mean == 2
    assert ("length" in measured) == bool(metrics)
    (comparison,) = compare_all(recipe, plan, answers, scores).values()
    assert comparison.as_dict()["win_share"]["mean"] == 0.5
    assert comparison.as_dict()["tie_share"]["mean"] == 0.5


def test_games_are_enough_to_measure_and_judge_by() -> None:
    assert config(against="before").judge_name == "environment"
    with pytest.raises(ValueError, match="judge 'environment/win' compares games, and 'reference' played none"):
        config(against="reference", judge="environment/win")
    with pytest.raises(
        ValueError, match=r"environment\.max_turn_tokens \(20\) must be at most max_response_tokens \(10\)"
    ):
        config(max_response_tokens=10)
