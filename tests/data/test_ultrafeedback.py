import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.packages import FIXTURES
from troupe.config.published_data import UltraFeedbackConfig
from troupe.data import DataSet, load_data
from troupe.errors import DataError


def load(path: Path = FIXTURES / "ultrafeedback", **settings: Any) -> DataSet:
    return load_data(UltraFeedbackConfig(path=str(path), **settings))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_the_prompt_is_taken_once_from_chosen_and_rejected_and_their_last_turns_are_the_answers() -> None:
    sample = load().train[0]
    assert sample.sample_id == "ultrafeedback/train_prefs/0"
    assert sample.prompt == [turn("user", "Why is the sky dark at night?")]
    assert sample.fields["answers"] == [
        "Because the turning Earth hides the sun from us, and starlight is faint.",
        "Because it is late.",
    ]
    assert sample.gold == sample.fields["demonstration"] == sample.fields["answers"][0]
    assert (sample.fields["score_chosen"], sample.fields["score_rejected"]) == (8.5, 4.0)
    assert len(sample.fields["prompt_id"]) == 64


def test_equal_and_empty_answers_are_left_out_and_counted() -> None:
    data = load()
    assert [sample.sample_id for sample in data.train] == [f"ultrafeedback/train_prefs/{i}" for i in (0, 2, 4)]
    assert [sample.sample_id for sample in data.heldout] == [f"ultrafeedback/test_prefs/{i}" for i in (0, 1)]
    assert data.dropped == {"empty_answers": 1, "equal_answers": 1}


def test_the_margin_is_the_scaled_difference_of_the_scores_where_asked_for() -> None:
    assert all("margin" not in sample.fields for sample in load().train)
    # 8.5 - 4.0, 9.0 - 5.5 and 7.5 - 2.5, halved.
    assert [sample.fields["margin"] for sample in load(margin_scale=0.5).train] == [2.25, 1.75, 2.5]


def test_long_prompts_are_left_out() -> None:
    data = load(max_prompt_chars=100)
    assert data.dropped["long_prompts"] == 1
    assert [sample.sample_id[-1] for sample in data.train] == ["0", "2"]


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        (None, r"test_prefs\.jsonl line 1: field 'chosen' must be a list of messages, not empty, got None"),
        ([turn("user", "Q?")], "line 1: 'chosen' must hold the prompt's turns and end with an assistant's turn"),
        ([turn("assistant", "A.")], "line 1: 'chosen' must hold the prompt's turns"),
        ([turn("user", "P?"), turn("assistant", "A.")], "line 1: 'chosen' and 'rejected' must begin with the same"),
    ],
)
def test_a_pair_that_lacks_a_side_or_mixes_prompts_is_refused(tmp_path: Path, chosen: Any, sentence: str) -> None:
    (tmp_path / "train_prefs.jsonl").write_text((FIXTURES / "ultrafeedback" / "train_prefs.jsonl").read_text())
    row = {"chosen": chosen, "rejected": [turn("user", "Q?"), turn("assistant", "B.")]}
    (tmp_path / "test_prefs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=sentence):
        load(tmp_path)


def test_a_margin_needs_scores(tmp_path: Path) -> None:
    sides = {name: [turn("user", "Q?"), turn("assistant", name)] for name in ("chosen", "rejected")}
    rows = [{**sides, "score_chosen": score} for score in (3, 4)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"line \d: field 'score_rejected' must be a number, got None"):
        load(tmp_path / "all.jsonl", margin_scale=1.0)
