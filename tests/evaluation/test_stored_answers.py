"""Answers on disk: what is read back is what was written, under the same settings alone, however it broke off."""

from __future__ import annotations

from pathlib import Path

from troupe.evaluation.stored_answers import AnswerLog, AnswerStore, text_branch
from troupe.files import read_lines
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


def test_answers_whose_settings_were_not_written_any_more_are_none(tmp_path: Path) -> None:
    """The settings are written last: a crash in between leaves answers that nobody can vouch for."""
    store = AnswerStore(tmp_path)
    store.write("model", {"s/1": Branch(token_ids=[1], text="a")}, {"seed": 0})
    (tmp_path / "model.settings.json").unlink()
    assert store.read("model", ["s/1"], {"seed": 0}) is None
    store.write("model", {"s/1": Branch(token_ids=[2], text="b")}, {"seed": 0})
    assert store.read("model", ["s/1"], {"seed": 0}) == {"s/1": Branch(token_ids=[2], text="b")}


def test_fewer_samples_are_answered_from_more_and_a_setting_that_is_new_changes_them(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    answers = {f"s/{n}": Branch(token_ids=[n], text=str(n)) for n in range(4)}
    store.write("model", answers, {"seed": 0})
    assert store.read("model", ["s/2", "s/1"], {"seed": 0}) == {"s/2": answers["s/2"], "s/1": answers["s/1"]}
    assert store.read("model", ["s/1"], {"seed": 0, "top_p": 0.5}) is None
    assert store.read("model", [], {"seed": 0}) == {}


# -- what an endpoint was asked ----------------------------------------------------------------------------------------


def line(question: str, text: str | None, **more: object) -> dict[str, object]:
    return {"question": question, "sample_id": "s/1", "repeat": 0, "text": text, **more}


def test_a_log_knows_the_questions_that_have_an_answer(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "deep", "gpt")
    assert log.known() == set()
    for row in (line("q1", None), line("q2", ""), line("q1", "a"), line("q3", None)):
        log.append(row)
    # An empty text is an answer where somebody wrote one down; null is a failure.
    assert log.known() == {"q1", "q2"}
    assert [row["text"] for row in log.rows(["q1"])] == [None, "a"]
    assert [row["question"] for row in log.rows(["q3", "q2"])] == ["q2", "q3"]  # as they were written
    assert AnswerLog(tmp_path / "deep", "gpt").known() == {"q1", "q2"}


def test_a_line_that_broke_off_is_not_read_and_spoils_no_other(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path, "gpt")
    log.append(line("q1", "a"))
    with open(tmp_path / "gpt.jsonl", "a") as file:
        file.write('{"question": "q2", "text": "b')
    again = AnswerLog(tmp_path, "gpt")
    again.append(line("q3", "c"))
    assert again.known() == {"q1", "q3"}
    assert len(read_lines(tmp_path / "gpt.jsonl")) == 2


def test_the_answer_of_a_line_has_no_tokens_and_ends_as_it_says() -> None:
    assert text_branch(line("q", "a", finish_reason="length")) == Branch(token_ids=(), text="a", finish_reason="length")
    assert text_branch(line("q", "a", finish_reason=None)).finish_reason == "stop"
    assert text_branch(line("q", "a")).finish_reason == "stop"
