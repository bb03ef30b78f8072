"""Games of tic-tac-toe to be played: the agent's symbol, the opponent's opening, and the seed of its moves.

The prompt shows the board before the agent's first move. A demonstration is a whole game in which both sides move at
random: it teaches how a move is written and which moves are legal, and leaves good play to reinforcement.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from troupe.config.made_data import TicTacToeConfig
from troupe.data.dataset import DataSet, conversation
from troupe.environments.board import CELLS, EMPTY, Symbol, free_cells, is_over, other, place, show, written
from troupe.records import Message, Sample

RULES = (
    "We play tic-tac-toe; you are {symbol}, I am {opponent}, and x begins. Rows are A to C, columns 1 to 3. "
    "At each turn I show the board; answer with your move, a free cell, such as {example}.\n{board}"
)


def load_tic_tac_toe(config: TicTacToeConfig) -> DataSet:
    """Make games, which differ by their seed: there are only ten boards that the agent can begin with."""
    return DataSet(
        name="tic_tac_toe",
        train=[_game("train", index, config) for index in range(config.num_train)],
        heldout=[_game("heldout", index, config) for index in range(config.num_heldout)],
    )


def _game(side: str, index: int, config: TicTacToeConfig) -> Sample:
    sample_id = f"tic_tac_toe/{side}/{index}"
    rng = random.Random(f"{sample_id}/{config.seed}")
    symbol: Symbol = "x" if rng.random() < 0.5 else "o"
    fields: dict[str, Any] = {"symbol": symbol, "seed": rng.getrandbits(48), "board": config.board, "tag": config.tag}
    board = EMPTY
    if symbol == "o":
        fields["opening"] = rng.choice(CELLS)
        board = place(EMPTY, fields["opening"], "x")
    fields["demonstration"] = _random_game(rng, board, symbol, config)
    return Sample(sample_id=sample_id, prompt=conversation(_prompt(board, symbol, config)), fields=fields)


def _prompt(board: str, symbol: Symbol, config: TicTacToeConfig) -> str:
    shown = show(board, config.board)
    if config.board != "grid":
        return f"{symbol}\n{shown}"
    return RULES.format(symbol=symbol, opponent=other(symbol), example=written("B2", config.tag), board=shown)


def _random_game(rng: random.Random, board: str, symbol: Symbol, config: TicTacToeConfig) -> Sequence[Message]:
    """Return the turns of a game from `board` to its end, the agent's first and last."""
    turns: list[Message] = []
    while not is_over(board):
        move = rng.choice(free_cells(board))
        board = place(board, move, symbol)
        turns.append({"role": "assistant", "content": written(move, config.tag)})
        if is_over(board):
            break
        board = place(board, rng.choice(free_cells(board)), other(symbol))
        if not is_over(board):
            turns.append({"role": "user", "content": show(board, config.board)})
    return turns
