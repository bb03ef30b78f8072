"""A game that is read back is the game that was played: whose tokens are whose, and how it ended."""

from __future__ import annotations

from pathlib import Path

from troupe.evaluation.stored_answers import AnswerStore
from troupe.records import Branch, Score


def test_a_stored_game_keeps_its_mask_and_its_outcome(tmp_path: Path) -> None:
    game = Branch(
        token_ids=[5, 6, 7],
        text="B2",
        loss_mask=[True, False, True],
        outcome=Score(value=0.5, parts={"environment": 0.5, "environment/draw": 1.0}),
    )
    answer = Branch(token_ids=[5, 6], text="4", finish_reason="length")
    store = AnswerStore(tmp_path)
    store.write("model", {"game": game, "answer": answer}, {"seed": 0})
    assert store.read("model", ["game", "answer"], {"seed": 0}) == {"game": game, "answer": answer}
    assert (game.num_sampled, answer.num_sampled) == (2, 2)
