"""The game's rules, its opponents, its rewards, and that the same seed is the same game."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from troupe.config.made_data import TicTacToeConfig
from troupe.data import load_data
from troupe.environments.board import CELLS, EMPTY, Symbol, free_cells, is_over, other, place, show, winner, written
from troupe.environments.tic_tac_toe import TicTacToe, best_moves, read_move, reply
from troupe.environments.turn import Turn
from troupe.records import Sample

Player = Callable[[str, random.Random], str]


def sample(**fields: Any) -> Sample:
    return Sample(sample_id="game/0", prompt="", fields={"symbol": "x", "seed": 1, **fields})


def play(game: TicTacToe, choose: Player, seed: int) -> tuple[Turn, list[str]]:
    """The last turn of a game, and the boards before each of the agent's moves; `choose` sees those in `grid`."""
    rng, boards = random.Random(seed), []
    while True:
        boards.append(game._board)
        turn = game.step(written(choose(game._board, rng), "move"))
        if turn.done:
            return turn, boards
        assert turn.observation == show(game._board, "grid")


def anywhere(board: str, rng: random.Random) -> str:
    return rng.choice(free_cells(board))


# -- the rules ---------------------------------------------------------------------------------------------------


def test_all_games_of_tic_tac_toe_end_as_often_as_is_known() -> None:
    """255,168 games: x wins 131,184, o wins 77,904, 46,080 are drawn (a count that many have published)."""
    ways: dict[str, int] = {EMPTY: 1}
    ends: Counter[str | None] = Counter()
    for move in range(9):
        symbol: Symbol = "x" if move % 2 == 0 else "o"
        later: Counter[str] = Counter()
        for board, count in ways.items():
            for cell in free_cells(board):
                after = place(board, cell, symbol)
                if is_over(after):
                    ends[winner(after)] += count
                else:
                    later[after] += count
        ways = dict(later)
    assert ends == {"x": 131_184, "o": 77_904, None: 46_080}


def test_a_taken_cell_and_one_that_is_none_are_refused() -> None:
    for cell in ("A1", "D1", ""):
        with pytest.raises(ValueError, match="is not a free cell; free are A2, A3"):
            place("x" + "." * 8, cell, "o")


# -- opponents ---------------------------------------------------------------------------------------------------


def results_against_perfect(board: str, agent: Symbol, turn: Symbol) -> set[Symbol | None]:
    """Every end that a game from `board` can have, whatever the agent does and whichever best move is drawn."""
    if is_over(board):
        return {winner(board)}
    moves = free_cells(board) if turn == agent else best_moves(board, turn)
    return set().union(*(results_against_perfect(place(board, cell, turn), agent, other(turn)) for cell in moves))


@pytest.mark.parametrize("agent", ["x", "o"])
def test_the_perfect_opponent_never_loses_whatever_the_agent_does(agent: Symbol) -> None:
    starts = [EMPTY] if agent == "x" else [place(EMPTY, opening, "x") for opening in CELLS]
    for start in starts:
        results = results_against_perfect(start, agent, agent)
        assert agent not in results
        assert results == {other(agent), None}  # it also takes what it is offered


def test_a_perfect_opponent_wins_at_once_where_it_can() -> None:
    # o o .
    # x x .   x would win at B3 next: o may win at A3, and any other move is worse.
    # . . .
    assert best_moves("oo.xx....", "o") == ("A3",)


def test_the_share_of_perfect_opponents_is_a_share_of_games() -> None:
    def perfect(seed: int) -> bool:
        game = TicTacToe(perfect_share=0.3)
        game.reset(sample(seed=seed), 0)
        return game._perfect

    share = sum(perfect(seed) for seed in range(1000)) / 1000
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1000)
    game = TicTacToe(perfect_share=1.0)
    game.reset(sample(), 0)
    assert play(game, anywhere, 0)[0].parts["win"] == 0


def test_a_random_opponent_takes_every_free_cell_equally_often() -> None:
    drawn = Counter(reply("x" + "." * 8, "o", False, seed) for seed in range(4000))
    # 8 cells, 500 each; four standard deviations of a binomial are 4 sqrt(4000 / 8 * 7 / 8) = 84.
    assert set(drawn) == set(CELLS[1:])
    assert all(abs(count - 500) < 84 for count in drawn.values())


# -- seeds -------------------------------------------------------------------------------------------------------


def test_all_branches_of_a_game_meet_the_same_opponent_and_other_games_another() -> None:
    def boards(seed: int, branch: int) -> list[str]:
        game = TicTacToe()
        game.reset(sample(seed=seed), branch)
        return play(game, anywhere, 5)[1]

    assert boards(1, branch=10) == boards(1, branch=11)
    assert len({tuple(boards(seed, branch=10)) for seed in range(8)}) > 4


def test_a_sample_that_says_nothing_gets_its_game_from_the_branchs_seed_and_is_told_it() -> None:
    plain = Sample(sample_id="mine/0", prompt="")
    openings = set()
    for seed in range(40):
        first, again = TicTacToe(), TicTacToe()
        opening = first.reset(plain, seed)
        assert opening == again.reset(plain, seed)
        assert opening is not None
        assert opening.startswith(f"You are {first._symbol}.")
        assert opening.endswith(show(first._board, "grid"))
        assert first._board.count("x") == (first._symbol == "o")
        openings.add(opening)
    assert len(openings) > 5  # x on the empty board, o behind one of nine openings


# -- rewards -----------------------------------------------------------------------------------------------------


def test_a_win_a_draw_and_a_loss_are_worth_one_half_and_nothing() -> None:
    ends = {}
    for seed in range(60):
        game = TicTacToe()
        game.reset(sample(seed=seed), 0)
        turn, _ = play(game, anywhere, seed)
        outcome = {name for name in ("win", "draw", "loss") if turn.parts[name]}
        assert len(outcome) == 1
        assert set(turn.parts) == set(TicTacToe.parts)
        ends[outcome.pop()] = turn.reward
    assert ends == {"win": 1.0, "draw": 0.5, "loss": 0.0}


@pytest.mark.parametrize(
    "answer",
    ["<move>A1</move>", "<move>D4</move>", "B2", "", "<move>A2</move> or <move>A3</move>", "<move></move>"],
    ids=["taken", "no cell", "no tag", "empty", "two moves", "empty tag"],
)
def test_a_move_that_cannot_be_made_or_read_ends_the_game_and_costs_less_the_later_it_comes(answer: str) -> None:
    for penalty in (-1.0, -100.0):
        game = TicTacToe(invalid_reward=penalty)
        game.reset(sample(), 0)
        assert not game.step("<move>A1</move>").done
        turn = game.step(answer)
        assert turn.done
        # One move was made: ln(2) / ln(100) = 0.1505.
        assert turn.reward == pytest.approx(penalty + 0.150515, abs=1e-6)
        assert turn.parts == {"win": 0, "draw": 0, "loss": 0, "num_moves": 1, "invalid_move": 1}


def test_a_move_is_read_from_the_middle_of_an_answer_in_any_case() -> None:
    assert read_move("First <b>I</b> think. <move> c3 </move> So there.", "move") == "C3"
    assert read_move("<move>A1</move>, yes, <move>a1</move>", "move") == "A1"
    assert read_move(" B2\n", None) == "B2"
    assert read_move("B2, I think", None) is None


# -- the data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", ["grid", "line", "names"])
def test_a_demonstration_is_a_whole_legal_game_from_the_board_of_the_prompt(board: str) -> None:
    data = load_data(TicTacToeConfig(num_train=60, board=board))
    assert len(data.heldout) == 48
    symbols = Counter(each.fields["symbol"] for each in [*data.train, *data.heldout])
    assert abs(symbols["x"] - 54) < 4 * math.sqrt(108 / 4)
    for each in data.train:
        symbol = each.fields["symbol"]
        state = EMPTY if symbol == "x" else place(EMPTY, each.fields["opening"], "x")
        (message,) = each.prompt
        assert message["content"].endswith(show(state, board))
        turns = each.fields["demonstration"]
        for index, turn in enumerate(turns):
            assert turn["role"] == ("assistant", "user")[index % 2]
            if turn["role"] == "assistant":
                cell = read_move(turn["content"], "move")
                assert cell in free_cells(state)
                state = place(state, str(cell), symbol)
            else:
                (replied,) = [
                    cell
                    for cell in free_cells(state)
                    if show(place(state, cell, other(symbol)), board) == turn["content"]
                ]
                state = place(state, replied, other(symbol))
        assert turns[-1]["role"] == "assistant"
        # Over, or the opponent's random move ended it: then nobody has to answer any more.
        assert is_over(state) or any(is_over(place(state, cell, other(symbol))) for cell in free_cells(state))


def test_the_environment_goes_on_where_the_prompt_stands() -> None:
    for each in load_data(TicTacToeConfig(num_train=20, board="line", tag=None)).train:
        game = TicTacToe()
        assert game.reset(each, 0) is None
        assert each.prompt[0]["content"] == f"{each.fields['symbol']}\n{show(game._board, 'line')}"
        turn = game.step(free_cells(game._board)[0])
        assert turn.observation == show(game._board, "line")
