"""The board of tic-tac-toe: its rules, and how it is written. Data show it in prompts, the environment plays on it.

A board is a string of nine characters, row by row: `x`, `o`, or `.` for a free cell. Cells are called A1 to C3, the
letter for the row. x moves first.
"""

from __future__ import annotations

from typing import Literal

Symbol = Literal["x", "o"]
Style = Literal["grid", "line", "names"]

EMPTY = "." * 9
CELLS = tuple(f"{row}{column}" for row in "ABC" for column in "123")
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


def free_cells(board: str) -> list[str]:
    """Names of the free cells, in order."""
    return [cell for cell, taken in zip(CELLS, board, strict=True) if taken == "."]


def place(board: str, cell: str, symbol: Symbol) -> str:
    """Return the board after a move; ValueError unless the cell exists and is free.

    >>> place("x........", "B2", "o")
    'x...o....'
    """
    if cell not in free_cells(board):
        raise ValueError(f"{cell} is not a free cell; free are {', '.join(free_cells(board)) or 'none'}")
    index = CELLS.index(cell)
    return board[:index] + symbol + board[index + 1 :]


def winner(board: str) -> Symbol | None:
    """Return which symbol has three in a row."""
    for a, b, c in LINES:
        if board[a] == board[b] == board[c] != ".":
            return "x" if board[a] == "x" else "o"
    return None


def is_over(board: str) -> bool:
    return winner(board) is not None or "." not in board


def other(symbol: Symbol) -> Symbol:
    return "o" if symbol == "x" else "x"


def show(board: str, style: Style) -> str:
    """Return the board as text. Small models do without a word: in `line` every cell is one token, always at the same
    distance from the end; in `names` a free cell is its own name, so that a legal move is one that stands there.

    >>> print(show("x...o....", "grid"))
      1 2 3
    A x . .
    B . o .
    C . . .
    >>> show("x...o....", "line")
    '/ x . . / . o . / . . .'
    >>> show("x...o....", "names")
    '/ x A2 A3 / B1 o B3 / C1 C2 C3'
    """
    cells = [name if style == "names" and taken == "." else taken for name, taken in zip(CELLS, board, strict=True)]
    rows = [" ".join(cells[start : start + 3]) for start in (0, 3, 6)]
    if style != "grid":
        return " ".join(f"/ {row}" for row in rows)
    return "\n".join(["  1 2 3", *(f"{name} {row}" for name, row in zip("ABC", rows, strict=True))])


def written(cell: str, tag: str | None) -> str:
    """Return a move as an answer gives it: `<move>B2</move>`, or without a tag `B2`."""
    return cell if tag is None else f"<{tag}>{cell}</{tag}>"
