import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from troupe.config.published_data import GSM8KConfig
from troupe.data import load_data
from troupe.errors import DataError

NATALIA = {
    "question": "Natalia sold clips to 48 friends in April, and half as many in May. How many altogether?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\nAltogether 48+24 = <<48+24=72>>72 clips.\n#### 72",
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def question(number: int, gold: str = "1") -> dict[str, str]:
    return {"question": f"Question {number}?", "answer": f"Because.\n#### {gold}"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", NATALIA, question(1))
    write(tmp_path / "test.jsonl", question(2, gold="1,234"), question(3))
    return tmp_path


def test_a_row_becomes_question_gold_number_and_demonstration_without_calculator_notes(directory: Path) -> None:
    sample = load_data(GSM8KConfig(path=str(directory))).train[0]
    assert sample.sample_id == "gsm8k/train/0"
    assert [message["role"] for message in sample.prompt] == ["system", "user"]
    assert sample.prompt[1]["content"] == NATALIA["question"]
    assert sample.gold == "72"
    assert sample.fields["demonstration"] == ("In May she sold 48/2 = 24 clips.\nAltogether 48+24 = 72 clips.\n#### 72")


def test_commas_leave_the_gold_number(directory: Path) -> None:
    assert load_data(GSM8KConfig(path=str(directory))).heldout[0].gold == "1234"


def test_the_system_message_can_be_left_out(directory: Path) -> None:
    sample = load_data(GSM8KConfig(path=str(directory), system_prompt=None)).train[0]
    assert [message["role"] for message in sample.prompt] == ["user"]


def test_num_heldout_takes_the_first_test_questions(directory: Path) -> None:
    heldout = load_data(GSM8KConfig(path=str(directory), num_heldout=1)).heldout
    assert [sample.sample_id for sample in heldout] == ["gsm8k/test/0"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "Q?"}, r"train\.jsonl line 2: field 'answer' is missing; the line has question"),
        ({"question": "", "answer": "#### 1"}, r"line 2: field 'question' must be a text that is not empty, got ''"),
        ({"question": "Q?", "answer": "It is 4."}, r"line 2: field 'answer' must end with '#### ' and a number"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(directory: Path, row: dict[str, Any], sentence: str) -> None:
    write(directory / "train.jsonl", NATALIA, row)
    with pytest.raises(DataError, match=sentence):
        load_data(GSM8KConfig(path=str(directory)))


def test_a_missing_file_is_named(directory: Path) -> None:
    (directory / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"there is no file .*test\.jsonl"):
        load_data(GSM8KConfig(path=str(directory)))
    with pytest.raises(DataError, match=r"there is no file .*nowhere\.jsonl"):
        load_data(GSM8KConfig(path="nowhere.jsonl"))


def test_the_hub_is_asked_for_the_main_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: str, split: str) -> list[dict[str, str]]:
        asked.append((*arguments, split))
        return {"train": [NATALIA], "test": [question(1)]}[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_data(GSM8KConfig()).train[0].gold == "72"
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]


def test_an_unreachable_hub_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: str, split: str) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"check the name and the network, or put train\.jsonl and test\.jsonl"):
        load_data(GSM8KConfig())
