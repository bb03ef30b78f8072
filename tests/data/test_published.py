"""What every data set of the hub shares, shown on real `datasets` objects that are made of the fixtures."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.data.packages import FIXTURES
from troupe.config.published_data import SmolTalkConfig, TldrComparisonsConfig, TldrConfig, UltraFeedbackConfig
from troupe.data import load_data
from troupe.errors import DataError

CONFIGS = [SmolTalkConfig, UltraFeedbackConfig, TldrConfig, TldrComparisonsConfig]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """A hub that holds the fixtures; returns what it was asked for."""
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, subset, split))
        kind = {config().path: config().type for config in CONFIGS}[name]
        rows = (FIXTURES / kind / f"{split}.jsonl").read_text().splitlines()
        return datasets.Dataset.from_list([json.loads(row) for row in rows])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("config", CONFIGS)
def test_the_hub_and_a_directory_of_its_rows_give_the_same_samples(config: Any, hub: list[Any]) -> None:
    assert load_data(config()) == load_data(config(path=str(FIXTURES / config().type)))


def test_each_data_set_asks_for_its_own_splits(hub: list[Any]) -> None:
    for config in CONFIGS:
        load_data(config())
    assert hub == [
        ("HuggingFaceTB/smol-smoltalk", None, "train"),
        ("HuggingFaceTB/smol-smoltalk", None, "test"),
        ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs"),
        ("HuggingFaceH4/ultrafeedback_binarized", None, "test_prefs"),
        ("CarperAI/openai_summarize_tldr", None, "train"),
        ("CarperAI/openai_summarize_tldr", None, "valid"),
        ("CarperAI/openai_summarize_comparisons", None, "train"),
        ("CarperAI/openai_summarize_comparisons", None, "valid1"),
    ]


def test_a_bad_row_of_the_hub_is_named_by_data_set_split_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "Post", "label": "Long"}, {"prompt": "Post", "label": None}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: datasets.Dataset.from_list(rows))
    with pytest.raises(DataError, match="openai_summarize_tldr train row 1: field 'label' must be a text"):
        load_data(TldrConfig())


def test_an_unreachable_hub_says_which_files_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, split: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"or put train_prefs\.jsonl and test_prefs\.jsonl into a directory"):
        load_data(UltraFeedbackConfig())


def test_limits_count_rows_that_pass_and_no_row_beyond_them_is_counted_as_left_out() -> None:
    path = str(FIXTURES / "ultrafeedback")
    # Row 3 has an empty answer: three training samples need rows 0, 1 and 2, four need row 4 and pass over row 3.
    # Equal answers (row 1) are found in what was taken.
    three, four = (load_data(UltraFeedbackConfig(path=path, num_train=n, num_heldout=1)) for n in (3, 4))
    assert [sample.sample_id[-1] for sample in three.train] == ["0", "2"]
    assert three.dropped == {"equal_answers": 1}
    assert [sample.sample_id[-1] for sample in four.train] == ["0", "2", "4"]
    assert four.dropped == {"empty_answers": 1, "equal_answers": 1}
    assert len(three.heldout) == 1


def test_one_file_of_a_preference_set_is_split(tmp_path: Path) -> None:
    rows = (FIXTURES / "ultrafeedback" / "train_prefs.jsonl").read_text()
    (tmp_path / "all.jsonl").write_text(rows)
    data = load_data(UltraFeedbackConfig(path=str(tmp_path / "all.jsonl"), num_heldout=2))
    assert {sample.sample_id.rpartition("/")[0] for sample in data.heldout} == {"ultrafeedback/all"}
    assert len(data.train) + len(data.heldout) + sum(data.dropped.values()) == len(rows.splitlines())


def test_what_was_left_out_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_data(UltraFeedbackConfig(path=str(FIXTURES / "ultrafeedback")))
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert line == "ultrafeedback: left out 1 empty_answers, 1 equal_answers"


def test_a_side_that_filters_emptied_is_refused_with_what_they_left_out() -> None:
    config = TldrComparisonsConfig(path=str(FIXTURES / "tldr_comparisons"), min_answer_words=50)
    with pytest.raises(DataError, match=r"no training samples; filters left out \{'short_answers': 6\}"):
        load_data(config)
