"""What is held out follows from the row, so that a file may grow, and be put in another order, without mixing the
sides.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from troupe.config.own_data import JsonlConfig, MessagesConfig
from troupe.config.published_data import GSM8KConfig
from troupe.data import DataSet, load_data
from troupe.data.dataset import hold_out
from troupe.errors import DataError

ROWS = [{"prompt": f"question {number}", "answer": str(number), "id": f"r{number}"} for number in range(400)]


def load(path: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> DataSet:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_data(JsonlConfig(path=str(path), gold_field="answer", **settings))


def prompts(samples: Sequence[Any]) -> set[str]:
    return {sample.prompt for sample in samples}


@pytest.mark.parametrize("settings", [{}, {"num_heldout": 20}, {"id_field": "id"}])
def test_a_row_that_was_trained_on_is_never_held_out_when_the_file_grows(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    trained: set[str] = set()
    for count in (30, 100, 150, 400):
        data = load(tmp_path / "rows.jsonl", ROWS[:count], **settings)
        trained |= prompts(data.train)
        assert not trained & prompts(data.heldout)
        assert len(data.train) + len(data.heldout) == count


def test_the_order_of_the_lines_moves_no_row_to_the_other_side(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    before, after = load(tmp_path / "rows.jsonl", ROWS), load(tmp_path / "rows.jsonl", shuffled)
    assert prompts(before.heldout) == prompts(after.heldout)


@pytest.mark.parametrize(("count", "fewest", "most"), [(2, 1, 1), (40, 1, 10), (400, 20, 60), (6000, 256, 256)])
def test_the_held_out_share_of_a_small_set_follows_its_size(count: int, fewest: int, most: int) -> None:
    # A tenth of 400 is 40, with a standard deviation of sqrt(400 * 0.1 * 0.9) = 6; the bounds are three of them.
    train, heldout = hold_out([f"row {number}" for number in range(count)], None, "test", str)
    assert fewest <= len(heldout) <= most
    assert len(train) == count - len(heldout)


def test_the_number_that_is_asked_for_is_held_out() -> None:
    train, heldout = hold_out([f"row {number}" for number in range(20)], 5, "test", str)
    assert (len(train), len(heldout)) == (15, 5)


def test_equal_rows_stay_on_one_side(tmp_path: Path) -> None:
    data = load(tmp_path / "rows.jsonl", [*ROWS[:50], *ROWS[:50], *ROWS[:50]])
    assert not prompts(data.train) & prompts(data.heldout)
    with pytest.raises(DataError, match=r"3 samples, too few different ones to hold out 1 and train on the others"):
        load(tmp_path / "same.jsonl", [ROWS[0]] * 3)


def test_a_corrected_row_keeps_its_side_by_its_own_id(tmp_path: Path) -> None:
    corrected = [{**row, "prompt": row["prompt"] + "?"} for row in ROWS]
    before, after = (load(tmp_path / "rows.jsonl", rows, id_field="id") for rows in (ROWS, corrected))
    assert {s.sample_id for s in before.heldout} == {s.sample_id for s in after.heldout}


def test_one_file_of_a_published_set_is_split_by_its_rows_too(tmp_path: Path) -> None:
    rows = [{"question": f"Question {number}?", "answer": f"#### {number}"} for number in range(300)]
    path = tmp_path / "all.jsonl"

    def heldout(count: int, wanted: int | None) -> set[str]:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        data = load_data(GSM8KConfig(path=str(path), system_prompt=None, num_heldout=wanted))
        assert len(data.train) + len(data.heldout) == count
        return {sample.prompt[0]["content"] for sample in data.heldout}  # type: ignore[index]

    assert heldout(200, None) <= heldout(300, None)
    assert len(heldout(200, 25)) == 25
    assert heldout(200, 1000) == heldout(200, None)  # there are no thousand


def test_chats_are_held_out_alike(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(60)]
    path = tmp_path / "chats.jsonl"
    sides = []
    for count in (40, 60):
        path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns[:count]))
        data = load_data(MessagesConfig(path=str(path), instruction="Think."))
        sides.append(({s.gold for s in data.train}, {s.gold for s in data.heldout}))
    (trained, _), (_, heldout) = sides
    assert not trained & heldout
