"""Games in a benchmark: models behind endpoints and the kept games of a run meet the same opponents. No engine starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.rewards.chat_server import Answer, ChatServer
from tests.training.test_episodes import last_board
from troupe.config.evaluation import BenchmarkConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.made_data import TicTacToeConfig
from troupe.data import load_data
from troupe.environments.board import CELLS, written
from troupe.environments.tic_tac_toe import TicTacToe, best_moves
from troupe.environments.turn import Turn
from troupe.errors import DataError, PlayError
from troupe.evaluation.plan import prepare
from troupe.files import read_json, read_lines
from troupe.jobs.benchmark import benchmark
from troupe.records import Sample

DATA = {"type": "tic_tac_toe", "num_train": 4, "num_heldout": 12, "board": "line", "tag": "move"}
GAMES = load_data(TicTacToeConfig(**{key: value for key, value in DATA.items() if key != "type"})).heldout
RULES = {"fn": "tic_tac_toe", "max_turns": 5, "max_turn_tokens": 12}
LENGTH = {"fn": "length", "args": {"limit": 10}}
ENDS = ("win", "draw", "loss", "invalid_move")

Player = Callable[[str], str]
"""From what is read to what is said."""


def first_free(text: str) -> str:
    board = last_board(text)
    return written(next(cell for cell, taken in zip(CELLS, board, strict=True) if taken == "."), "move")


def at_its_best(text: str) -> str:
    board = last_board(text)
    return written(best_moves(board, "x" if board.count("x") == board.count("o") else "o")[0], "move")


def ended(sample: Sample, player: Player) -> Turn:
    """The end of a game, played without anything of the benchmark."""
    game, said = TicTacToe(), str(sample.prompt)
    game.reset(sample, 0)
    while not (turn := game.step(player(said))).done:
        said = str(turn.observation)
    return turn


def shares(player: Player) -> dict[str, float]:
    return {end: sum(ended(sample, player).parts[end] for sample in GAMES) / len(GAMES) for end in ENDS}


def write_run(directory: Path, steps: dict[int, Player], **changes: Any) -> None:
    """A run that has kept its held-out games at each step."""
    directory.mkdir(parents=True)
    recipe = GRPOConfig(
        data=DATA, environment={**RULES, **changes}, rewards=[], rollout={"max_response_tokens": 200},
        evaluation={"metrics": [], "best_metric": "environment/win"},
    )  # fmt: skip
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json"))))
    lines = []
    for step, player in steps.items():
        for sample in GAMES:
            turn = ended(sample, player)
            parts = {f"environment/{name}": value for name, value in turn.parts.items()}
            metrics = {"environment": turn.reward, **parts, "environment/failed": 0.0}
            prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in sample.prompt)  # type: ignore[index]
            about = {"step": step, "set": "tic_tac_toe", "sample_id": sample.sample_id, "prompt": prompt, "gold": None}
            lines.append({**about, "text": "a game", "metrics": metrics})
    (directory / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass
class Players:
    directory: Path
    weak: ChatServer
    strong: ChatServer

    def recipe(self, **given: Any) -> BenchmarkConfig:
        endpoint = {"model": "m", "api_key_env": None, "backoff_s": 0.01, "patience_s": 20}
        settings = {
            "trained": str(self.directory / "run"),
            "data": DATA,
            "environment": RULES,
            "metrics": [],
            "max_response_tokens": 200,
            "charts": [f"environment/{end}" for end in ENDS[:3]],
            "diversity": False,
            "endpoints": {name: {**endpoint, "base_url": getattr(self, name).url} for name in ("weak", "strong")},
            "output": str(self.directory / "out"),
        }
        return BenchmarkConfig(**(settings | given))


def playing(player: Player) -> Callable[[dict[str, Any], int], Answer | str]:
    return lambda body, number: player(body["messages"][-1]["content"])


@pytest.fixture
def players(tmp_path: Path) -> Iterator[Players]:
    write_run(tmp_path / "run", {0: first_free, 10: at_its_best})
    with ExitStack() as stack:
        servers = [stack.enter_context(ChatServer(playing(each)).running()) for each in (first_free, at_its_best)]
        yield Players(tmp_path, *servers)


def measured(players: Players) -> dict[str, dict[str, float]]:
    found = read_json(players.directory / "out" / "metrics.json")["models"]
    return {name: {end: one[f"environment/{end}"]["mean"] for end in ENDS} for name, one in found.items()}


def test_all_play_the_same_games_and_a_second_call_asks_nothing(players: Players) -> None:
    benchmark(players.recipe())
    weak, strong = shares(first_free), shares(at_its_best)
    assert strong["win"] > weak["win"]
    assert strong["loss"] == 0
    assert measured(players) == {
        "run@0": pytest.approx(weak),
        "run@10": pytest.approx(strong),
        "weak": pytest.approx(weak),
        "strong": pytest.approx(strong),
    }
    out = players.directory / "out"
    drawn = {path.name for path in (out / "charts").glob("*.svg")}
    assert drawn == {f"environment-{end}-{kind}.svg" for end in ENDS[:3] for kind in ("over-steps", "first-and-last")}
    assert "12 held-out samples of tic_tac_toe, one game each" in (out / "results.md").read_text()
    # Every move is a request, also where two games begin alike: each has its own answer.
    moves = sum(ended(sample, first_free).parts["num_moves"] for sample in GAMES)
    assert len(players.weak.bodies) == moves
    assert all(body["max_tokens"] == 12 for body in players.weak.bodies)
    assert players.weak.bodies[-1]["messages"][-1]["role"] == "user"

    asked, before = len(players.weak.bodies) + len(players.strong.bodies), measured(players)
    benchmark(players.recipe())
    assert (len(players.weak.bodies) + len(players.strong.bodies), measured(players)) == (asked, before)
    benchmark(players.recipe(seed=1, trained=None))  # other games, where the seed decides
    assert len(players.weak.bodies) == 2 * moves


def test_a_move_that_cannot_be_read_ends_a_game_as_it_does_in_training(players: Players) -> None:
    players.weak.respond = lambda body, number: "I resign"
    benchmark(players.recipe())
    assert measured(players)["weak"] == {"win": 0, "draw": 0, "loss": 0, "invalid_move": 1}
    rows = read_lines(players.directory / "out" / "answers" / "weak.jsonl")
    assert {row["metrics"]["environment"] for row in rows} == {-1.0}
    assert {row["prediction"] for row in rows} == {"assistant: I resign"}


def test_a_game_whose_model_owes_an_answer_is_missing_and_played_again(players: Players) -> None:
    def silent(body: dict[str, Any], number: int) -> Answer | str:
        return "" if len(body["messages"]) > 3 else first_free(body["messages"][-1]["content"])

    players.weak.respond = silent
    benchmark(players.recipe())
    weak = next(one for one in read_json(players.directory / "out" / "benchmark.json")["contestants"]
                if one["name"] == "weak")  # fmt: skip
    assert weak["missing"] == sum(ended(sample, first_free).parts["num_moves"] > 2 for sample in GAMES) > 2
    assert "the reply was empty" in weak["remark"]
    players.weak.respond = playing(first_free)
    benchmark(players.recipe())
    assert measured(players)["weak"] == pytest.approx(shares(first_free))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({"args": {"perfect_share": 1.0}}, {}), ({}, {"invalid_reward": -100.0}), ({"max_turns": 3}, {})],
)
def test_kept_games_of_other_rules_do_not_stand_for_these(
    tmp_path: Path, players: Players, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    write_run(tmp_path / "other", {0: first_free}, args=theirs)
    with pytest.raises(DataError, match="has no complete checkpoint and no answers to all 12 samples"):
        prepare(players.recipe(trained=str(tmp_path / "other"), environment={**RULES, **ours}))
    with pytest.raises(DataError, match="no answers to all 12 samples"):
        prepare(players.recipe(trained=str(tmp_path / "run"), environment=None, metrics=[LENGTH], charts=None))


class Breaks:
    """A game that breaks at the second answer, and says where it stands before the first."""

    def reset(self, sample: Sample, seed: int) -> str:
        self._turns = 0
        return f"seed {seed}"

    async def step(self, answer: str) -> Turn:
        self._turns += 1
        if self._turns == 2:
            raise KeyError("no such level")
        return Turn(observation="go on")


def test_an_environment_that_raises_costs_its_game_or_stops_the_benchmark(players: Players) -> None:
    players.weak.respond = lambda body, number: "yes"
    rules: dict[str, Any] = {"fn": f"{__name__}:Breaks", "max_turns": 4}
    endpoints = {"weak": {"base_url": players.weak.url, "model": "m", "api_key_env": None}}
    recipe = {"trained": None, "endpoints": endpoints, "charts": None}
    for _ in range(2):  # a game that failed is played again
        with pytest.raises(PlayError, match=r"raised in 12 of 12 games of weak, the last with KeyError: 'no such leve"):
            benchmark(players.recipe(environment=rules, **recipe))
    contents = [message["content"] for message in players.weak.bodies[0]["messages"]]
    assert contents[-1].startswith("seed ")
    rules |= {"max_error_fraction": 1.0, "error_reward": -2.0, "args": {}, "unfinished_reward": 0.0}
    benchmark(players.recipe(environment=rules, **recipe))
    (one,) = read_json(players.directory / "out" / "metrics.json")["models"].values()
    assert (one["environment"]["mean"], one["environment/failed"]["mean"]) == (-2.0, 1.0)
