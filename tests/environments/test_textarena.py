"""Games of TextArena follow from their seeds alone, whatever else is played, and score as the library does."""

from __future__ import annotations

import random
import re

import pytest

from troupe.config.libraries import TextArenaConfig
from troupe.config.rollout import EnvironmentConfig
from troupe.data import load_data
from troupe.environments import Games, build_environment
from troupe.environments.textarena import TextArena
from troupe.errors import ConfigError
from troupe.records import Sample

NAME = "GuessTheNumber-v0"
DATA = load_data(TextArenaConfig(name=NAME, num_train=4, num_heldout=2))
HERE = "tests.environments.test_textarena"


def games(**settings: object) -> Games:
    return build_environment(EnvironmentConfig(**{"type": "textarena", "name": NAME, **settings}))  # type: ignore[arg-type]


def searched(game: TextArena, low: int = 1, high: int = 20) -> tuple[list[int], float]:
    """The guesses of a binary search, and the reward."""
    guesses: list[int] = []
    while True:
        guesses.append((low + high) // 2)
        turn = game.step(f"I say [{guesses[-1]}]")
        if turn.done:
            return guesses, turn.reward
        assert re.fullmatch(r"The target number is (higher|lower)\.", str(turn.observation))
        low, high = (guesses[-1] + 1, high) if "higher" in str(turn.observation) else (low, guesses[-1] - 1)


def test_the_prompt_is_the_opening_and_the_game_is_that_of_the_sample() -> None:
    (turn,) = DATA.train[0].prompt
    assert "guess the number between 1 and 20" in turn["content"]
    made = games()
    first = made.new()
    assert first.reset(DATA.train[0], 5) is None  # it stands in the prompt
    guesses, reward = searched(first)  # type: ignore[arg-type]
    assert reward == 1.0
    again = made.new()
    again.reset(DATA.train[0], 99)
    assert searched(again)[0] == guesses  # type: ignore[arg-type]
    ends = set()
    for sample in DATA.train:
        game = made.new()
        game.reset(sample, 0)
        ends.add(searched(game)[0][-1])  # type: ignore[arg-type]
    assert len(ends) > 1


def test_games_at_the_same_time_do_not_draw_each_others_numbers() -> None:
    state = random.getstate()
    alone = TextArena(name="Blackjack-v0")
    alone.begin(7)
    wanted = [alone.step("[Hit]").observation for _ in range(4)]
    one, other = TextArena(name="Blackjack-v0"), TextArena(name="Blackjack-v0")
    one.begin(7)
    other.begin(8)
    mixed = []
    for _ in range(4):
        mixed.append(one.step("[Hit]").observation)
        other.step("[Hit]")
    assert mixed == wanted
    assert random.getstate() == state  # the run's own numbers are where they were


def test_a_sample_of_other_data_is_shown_the_opening_and_bad_moves_end_the_game() -> None:
    game = games().new()
    opening = game.reset(Sample(sample_id="s", prompt=[{"role": "user", "content": "Let us play."}]), 3)
    assert "Guess The Number" in str(opening)
    first = game.step("no idea")
    assert not first.done  # type: ignore[union-attr]
    last = game.step("none at all")
    assert last.done  # type: ignore[union-attr]
    assert last.parts == {"num_moves": 2.0, "invalid_move": 1.0}  # type: ignore[union-attr]


def first_free(text: str) -> str:
    return f"[{re.findall(r'[0-8]', text.rpartition('Current Board')[2])[0]}]"


def test_a_game_for_two_is_played_against_the_opponent_of_the_config() -> None:
    made = games(name="TicTacToe-v0", args={"opponent": f"{HERE}:first_free"})
    rewards = []
    for seed in range(4):
        game = made.new()
        text = str(game.reset(Sample(sample_id="s", prompt="?"), seed))
        while True:
            free = re.findall(r"[0-8]", text.rpartition("Current Board")[2])
            turn = game.step(f"[{free[-1]}]")
            if turn.done:  # type: ignore[union-attr]
                rewards.append(turn.reward)  # type: ignore[union-attr]
                break
            text = str(turn.observation)  # type: ignore[union-attr]
    assert set(rewards) <= {-1.0, 0.0, 1.0}
    assert any(rewards)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("GuessTheNumber", "TextArena has no game 'GuessTheNumber'; it has GuessTheNumber-v0"),
        ("TicTacToe-v0", r"TicTacToe-v0 cannot be played by 1 .*games for two need args.opponent"),
        ("Hangman-v0", "Hangman-v0 needs the word list words of nltk, and nothing is downloaded while a run goes on"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_data(TextArenaConfig(name=name, num_train=1, num_heldout=1))


def test_a_game_is_named_one_way() -> None:
    with pytest.raises(ValueError, match="type textarena needs the name of a game"):
        EnvironmentConfig(type="textarena")
    with pytest.raises(ValueError, match="name belongs to type textarena"):
        EnvironmentConfig(fn="tic_tac_toe", name=NAME)
