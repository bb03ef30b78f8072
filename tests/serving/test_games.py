"""Games over HTTP: the answers of a request are played anew, and end as in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from omegaconf import OmegaConf
from starlette.testclient import TestClient

from tests.training.test_episodes import last_board
from troupe.config.grpo import GRPOConfig
from troupe.config.made_data import TicTacToeConfig
from troupe.config.rollout import EnvironmentConfig
from troupe.data import load_data
from troupe.environments.board import CELLS, written
from troupe.environments.tic_tac_toe import TicTacToe
from troupe.environments.turn import Turn
from troupe.jobs.serve import with_game
from troupe.records import Sample
from troupe.serving import games
from troupe.serving.games import Playable, games_router
from troupe.serving.served_models import Served

DATA = TicTacToeConfig(num_train=4, num_heldout=5, board="line")
GAME = Playable(config=EnvironmentConfig(fn="tic_tac_toe", max_turns=5), samples=load_data(DATA).heldout)


class Moody:
    """A game that says where it stands, and breaks or hangs when it is told to."""

    def reset(self, sample: Sample, seed: int) -> str:
        self.seed = seed
        return f"This is game {seed}."

    async def step(self, answer: str) -> Turn:
        if answer == "break":
            raise KeyError("no such level")
        if answer == "hang":
            import asyncio

            await asyncio.sleep(2)
        return Turn(observation=f"{answer}?", reward=0.25)


MOODY = Playable(
    config=EnvironmentConfig(fn=f"{__name__}:Moody", max_turns=3, unfinished_reward=-1.0, error_reward=-2.0),
    samples=[Sample(sample_id="s", prompt="Play.")],
)


def first_free(text: str) -> str:
    board = last_board(text)
    return written(next(cell for cell, taken in zip(CELLS, board, strict=True) if taken == "."), "move")


def played(number: int, player: Callable[[str], str]) -> Turn:
    """The end of a game, by the environment alone."""
    sample, game = GAME.samples[number % len(GAME.samples)], TicTacToe()
    game.reset(sample, number)
    said = str(sample.prompt)
    while not (turn := game.step(player(said))).done:
        said = str(turn.observation)
    return turn


def asked(**body: Any) -> tuple[int, dict[str, Any]]:
    app = FastAPI()
    app.include_router(games_router({"run": GAME, "moody": MOODY}, max_bytes=10_000))
    answer = TestClient(app).post("/v1/games", json=body)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("number", [0, 1, 7])
def test_a_game_is_played_anew_up_to_its_last_answer_and_ends_as_the_environment_ends_it(number: int) -> None:
    answers: list[str] = []
    _, state = asked(model="run", game=number)
    assert state["messages"] == list(GAME.samples[number % 5].prompt)
    while not state["over"]:
        answers.append(first_free(state["messages"][-1]["content"]))
        before, (_, state) = state, asked(model="run", game=number, answers=answers)
        assert state["messages"][: len(before["messages"]) + 1] == [
            *before["messages"], {"role": "assistant", "content": answers[-1]}
        ]  # fmt: skip
    end = played(number, first_free)
    assert (state["reward"], state["parts"]) == (end.reward, dict(end.parts))
    assert asked(model="run", game=number, answers=[*answers, "B2"])[1] == state


def test_an_opening_is_a_turn_and_a_game_is_cut_after_its_turns() -> None:
    _, state = asked(model="moody", game=4, answers=["a", "b"])
    said = [(turn["role"], turn["content"]) for turn in state["messages"]]
    opening = [("user", "Play."), ("user", "This is game 4.")]
    assert said == [*opening, ("assistant", "a"), ("user", "a?"), ("assistant", "b"), ("user", "b?")]
    assert (state["over"], state["reward"]) == (False, 0.5)
    _, state = asked(model="moody", answers=["a", "b", "c"])
    assert (state["over"], state["cut"], state["reward"]) == (True, True, 0.75 - 1.0)


def test_an_environment_that_raises_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _, state = asked(model="moody", answers=["a", "break"])
    assert (state["over"], state["reward"], state["error"]) == (True, -2.0, "KeyError: 'no such level'")
    monkeypatch.setattr(games, "PATIENCE_S", 0.05)
    status, answer = asked(model="moody", answers=["hang"])
    assert status == 503
    assert "the environment did not answer within 0.05 s; begin another game" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"model": "other"}, 404, "'other' has no environment to play; there are: run, moody"),
        ({"model": "run", "game": -1}, 400, "game: Input should be greater than or equal to 0"),
        ({"model": "run", "answers": "B2"}, 400, "answers: Input should be a valid list"),
        ({"model": "run", "move": "B2"}, 400, "move: Extra inputs are not permitted"),
        ({"model": "run", "answers": ["x" * 20_000]}, 400, "larger than 10000 bytes"),
    ],
)
def test_a_request_that_is_no_game_is_refused_in_a_sentence(body: dict[str, Any], status: int, sentence: str) -> None:
    found, answer = asked(**body)
    assert found == status
    assert sentence in answer["error"]["message"]


def served(directory: Path, **recipe: Any) -> Served:
    (directory / "checkpoints" / "step-000001").mkdir(parents=True)
    config = GRPOConfig(rewards=[], evaluation={"metrics": [], "best_metric": "environment"}, **recipe)
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json"))))
    path = str(directory / "checkpoints" / "step-000001")
    return with_game(Served(name="run", path=path, step=1, max_length=64, metadata={"chat": True}))


def test_a_served_run_brings_its_environment_and_its_held_out_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"fn": "tic_tac_toe", "max_turns": 5, "max_turn_tokens": 12}
    length = {"max_response_tokens": 100}
    found = served(tmp_path / "run", data=DATA.model_dump(), environment=rules, rollout=length)
    assert found.game == Playable(config=EnvironmentConfig(**rules), samples=GAME.samples)
    assert found.metadata == {"chat": True, "game": "tic_tac_toe"}
    gone = {**rules, "fn": "nowhere.games:Maze"}
    assert served(tmp_path / "gone", environment=gone, rollout=length).game is None
    assert "run: its run's environment cannot be played here: " in capsys.readouterr().out
    plain = Served(name="hub", path="org/model", step=None, max_length=64)
    assert with_game(plain) == plain
