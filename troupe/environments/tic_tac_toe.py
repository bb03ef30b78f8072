"""Tic-tac-toe against a random or a perfect opponent: win 1, draw 0.5, loss 0, and a move that cannot be made costs.

What the prompt has told (the agent's symbol, the opponent's opening, how boards and moves are written) is in the
sample's fields, as `troupe/data/tic_tac_toe.py` puts it there; of other samples the environment draws it and says so
itself.
"""

from __future__ import annotations

import math
import random
import re
from functools import cache
from typing import Annotated, Any

from pydantic import Field

from troupe.environments.board import CELLS, EMPTY, Symbol, free_cells, is_over, other, place, show, winner, written
from troupe.environments.turn import Turn
from troupe.records import Sample

Share = Annotated[float, Field(ge=0, le=1)]
Reward = Annotated[float, Field(allow_inf_nan=False)]


class TicTacToe:
    """One game. The opponent's moves are a function of the game's seed and the board, so that all branches of a sample
    meet the same opponent and differ in nothing but their own moves."""

    parts = ("win", "draw", "loss", "num_moves", "invalid_move")

    def __init__(self, *, perfect_share: Share = 0.0, invalid_reward: Reward = -1.0) -> None:
        """Set the opponent; `perfect_share` is the share of the games whose opponent plays perfectly, in the others it
        plays at random. `invalid_reward`: the reward of a move that cannot be read or made is this + ln(moves + 1) /
        ln(100), with `moves` those that the agent made before; -100 is what ART's example takes.
        """
        self._perfect_share, self._invalid_reward = perfect_share, invalid_reward

    def reset(self, sample: Sample, seed: int) -> str | None:
        """Begin, the opponent first if the agent is o; None when the prompt has shown where the game stands."""
        fields = sample.fields
        self._seed = fields.get("seed", seed)
        drawn = random.Random(f"tic_tac_toe/{self._seed}")
        symbol, opening, perfect = drawn.choice(("x", "o")), drawn.choice(CELLS), drawn.random() < self._perfect_share
        self._style, self._tag = fields.get("board", "grid"), fields.get("tag", "move")
        self._symbol: Symbol = _symbol(fields.get("symbol", symbol))
        self._perfect, self._num_moves = perfect, 0
        self._board = EMPTY
        if self._symbol == "o":
            # Every opening draws against perfect play, so a perfect opponent may draw its own at random, too.
            self._board = place(EMPTY, fields.get("opening", opening), "x")
        if "symbol" in fields:
            return None
        return f"You are {self._symbol}. Answer with a free cell, such as {written('B2', self._tag)}.\n{self._shown()}"

    def step(self, answer: str) -> Turn:
        """Return the agent's move, then the opponent's."""
        move = read_move(answer, self._tag)
        if move not in free_cells(self._board):
            made = math.log(self._num_moves + 1) / math.log(100)
            return Turn(done=True, reward=self._invalid_reward + made, parts=self._parts(invalid_move=1.0))
        self._num_moves += 1
        self._board = place(self._board, move, self._symbol)
        if not is_over(self._board):
            opponent = other(self._symbol)
            self._board = place(self._board, reply(self._board, opponent, self._perfect, self._seed), opponent)
        if not is_over(self._board):
            return Turn(observation=self._shown(), parts=self._parts())
        won = winner(self._board)
        if won is None:
            return Turn(done=True, reward=0.5, parts=self._parts(draw=1.0))
        is_win = won == self._symbol
        return Turn(done=True, reward=float(is_win), parts=self._parts(**{"win" if is_win else "loss": 1.0}))

    def _parts(self, **outcome: float) -> dict[str, float]:
        """Return all parts at every turn, so that a game that is cut off counts as not won."""
        return {**dict.fromkeys(self.parts, 0.0), "num_moves": float(self._num_moves), **outcome}

    def _shown(self) -> str:
        return show(self._board, self._style)


def read_move(answer: str, tag: str | None) -> str | None:
    """Return the cell that an answer names, None unless it names exactly one.

    >>> read_move("I take the centre: <move>b2</move>", "move")
    'B2'
    >>> read_move("<move>A1</move> or <move>A2</move>", "move")
    """
    if tag is None:
        found = [answer.strip()]
    else:
        found = [text.strip() for text in re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", answer, re.DOTALL)]
    cells = {text.upper() for text in found}
    return cells.pop() if len(cells) == 1 and cells <= set(CELLS) else None


def reply(board: str, symbol: Symbol, perfect: bool, seed: Any) -> str:
    """Return the opponent's move: drawn from the free cells, or from those that are best."""
    choices = best_moves(board, symbol) if perfect else tuple(free_cells(board))
    return random.Random(f"tic_tac_toe/{seed}/{board}").choice(choices)


@cache
def best_moves(board: str, symbol: Symbol) -> tuple[str, ...]:
    """Return the moves of highest value for `symbol`, whose turn it is (minimax)."""
    values = {cell: -_value(place(board, cell, symbol), other(symbol)) for cell in free_cells(board)}
    return tuple(cell for cell, value in values.items() if value == max(values.values()))


@cache
def _value(board: str, symbol: Symbol) -> int:
    """Return what the board is worth to `symbol`, whose turn it is, under perfect play: 1 won, 0 drawn, -1 lost."""
    if is_over(board):
        return 0 if winner(board) is None else -1  # the one who moved last has won
    return max(-_value(place(board, cell, symbol), other(symbol)) for cell in free_cells(board))


def _symbol(value: Any) -> Symbol:
    if value not in ("x", "o"):
        raise ValueError(f"the field symbol of a sample must be x or o, got {value!r}")
    return "x" if value == "x" else "o"
