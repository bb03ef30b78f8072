"""What can be wrong with an environment in a recipe is one sentence, before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from troupe.config.rollout import EnvironmentConfig
from troupe.environments import build_environment
from troupe.environments.turn import Turn
from troupe.errors import ConfigError
from troupe.records import Sample

HERE = "tests.environments.test_build"


class Counting:
    """Ends after `length` answers."""

    def __init__(self, *, length: Annotated[int, Field(ge=1)] = 2) -> None:
        if length == 13:
            raise ValueError("13 turns bring bad luck")
        self._left = length

    def reset(self, sample: Sample, seed: int) -> None:
        return None

    def step(self, answer: str) -> Turn:
        self._left -= 1
        return Turn(observation="Go on.", done=self._left == 0)


class Stepless:
    def reset(self, sample: Sample, seed: int) -> None:
        return None


class Hasty:
    def reset(self, sample: Sample) -> None:
        return None

    def step(self, answer: str) -> Turn:
        return Turn(done=True)


def no_class() -> None:
    return None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fn": "tic_tac_to"}, "environment: unknown environment 'tic_tac_to'; did you mean 'tic_tac_toe'"),
        ({"fn": "no_such:Game"}, "environment: cannot import 'no_such' of 'no_such:Game'"),
        ({"fn": f"{HERE}:no_class"}, "no_class is a function, not a class"),
        ({"fn": f"{HERE}:Stepless"}, r"Stepless has no step; write step\(self, answer\)"),
        ({"fn": f"{HERE}:Hasty"}, r"Hasty.reset must take what reset\(self, sample, seed\) takes: too many"),
        ({"fn": f"{HERE}:Counting", "args": {"lenght": 2}}, "unknown argument 'lenght'; its arguments are: length"),
        ({"fn": f"{HERE}:Counting", "args": {"length": 0}}, r"argument length: .* or equal to 1 \(got 0\)"),
        ({"fn": f"{HERE}:Counting", "args": {"length": 13}}, "Counting: 13 turns bring bad luck"),
        ({"fn": f"{HERE}:Counting", "timeout_s": 1.5}, r"timeout_s \(1.5\) can only end calls that wait"),
        ({"fn": "tic_tac_toe", "args": {"perfect_share": 2}}, r"perfect_share: .* less than or equal to 1 \(got 2\)"),
    ],
)
def test_a_mistake_in_an_environment_is_found_before_anything_starts(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_environment(EnvironmentConfig(**settings))


def test_every_game_is_an_object_of_its_own() -> None:
    games = build_environment(EnvironmentConfig(fn=f"{HERE}:Counting", args={"length": 1}))
    first, second = games.new(), games.new()
    assert first is not second
    assert first.step("").done
    assert second.step("").done


def test_a_metric_that_no_game_gives_cannot_choose_the_best_checkpoint() -> None:
    games = build_environment(EnvironmentConfig(fn="tic_tac_toe"))
    for metric in ("environment", "environment/win", "environment/failed", "rouge"):
        games.require_metric(metric)
    with pytest.raises(ConfigError, match="tic_tac_toe gives no 'wins'; its parts are win, draw, loss"):
        games.require_metric("environment/wins")
    build_environment(EnvironmentConfig(fn=f"{HERE}:Counting")).require_metric("environment/whatever")


@pytest.mark.parametrize(
    ("turn", "sentence"),
    [
        ({}, "a turn that does not end the game needs an observation, got None"),
        ({"observation": 3}, "needs an observation, got 3"),
        ({"done": True, "reward": float("nan")}, "reward of a turn must be a finite number, got nan"),
        ({"done": True, "parts": {"win": "yes"}}, "win of a turn must be a finite number, got 'yes'"),
    ],
)
def test_a_turn_that_says_nothing_or_no_number_is_refused(turn: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Turn(**turn)


def test_the_environment_of_the_documentation_plays() -> None:
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    (source,) = re.findall(r"```python\n([^`]*class Guess.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "documented"}
    exec(source, names)
    game = names["Guess"](largest=10)
    assert game.reset(Sample(sample_id="s", prompt=""), 6) == "I think of a number from 1 to 10."
    assert game.step("5").observation == "higher"
    turn = game.step("7")
    assert (turn.done, turn.reward, turn.parts) == (True, 1.0, {"found": 1.0, "guesses": 2})
