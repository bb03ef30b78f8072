"""Any data set that the `datasets` library loads, and a loader of one's own: the mapping of files, other readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from troupe.config.own_data import FunctionConfig, HubConfig, RowFilterConfig
from troupe.data import load_data
from troupe.errors import ConfigError, DataError
from troupe.records import Sample


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Parquet files of two splits, as `datasets` finds them by their names."""
    folder = tmp_path / "sums"
    folder.mkdir()
    rows = [{"question": f"{n}+1?", "answer": str(n + 1), "level": n % 3} for n in range(12)]
    pd.DataFrame(rows[:9]).to_parquet(folder / "train.parquet")
    pd.DataFrame(rows[9:]).to_parquet(folder / "test.parquet")
    return folder


FIELDS: dict[str, Any] = {"prompt_field": "question", "gold_field": "answer"}


def test_a_directory_of_parquet_files_is_read_by_split_and_mapped_like_a_file(directory: Path) -> None:
    filters = [RowFilterConfig(field="level", one_of=[0.0, 1.0])]
    data = load_data(HubConfig(path=str(directory), heldout_split="test", filters=filters, **FIELDS))
    assert [(sample.sample_id, sample.prompt, sample.gold) for sample in data.train[:3]] == [
        ("hub/train/0", "0+1?", "1"),
        ("hub/train/1", "1+1?", "2"),
        ("hub/train/3", "3+1?", "4"),
    ]
    assert [sample.gold for sample in data.heldout] == ["10", "11"]
    assert data.dropped == {"other_level": 4}


def test_without_a_held_out_split_rows_of_the_training_split_are_held_out(directory: Path) -> None:
    data = load_data(HubConfig(path=str(directory), split="train[:6]", num_heldout=2, **FIELDS))
    assert (len(data.train), len(data.heldout), data.from_one_file) == (4, 2, True)


def test_a_csv_directory_and_what_save_to_disk_wrote_are_read_too(tmp_path: Path, directory: Path) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "train.csv").write_text("instruction,input,output\nAdd.,2 and 2,four\nAdd.,2 and 3,five\n")
    assert load_data(HubConfig(path=str(folder), num_heldout=1)).train[0].prompt[:4] == "Add."  # type: ignore[index]
    saved = tmp_path / "saved"
    datasets.load_dataset(str(directory)).save_to_disk(str(saved))
    assert len(load_data(HubConfig(path=str(saved), heldout_split="test", **FIELDS)).heldout) == 3
    with pytest.raises(DataError, match=r"split 'dev': Unknown split 'dev'. Should be one of \['train', 'test'\]"):
        load_data(HubConfig(path=str(saved), split="dev", **FIELDS))


def test_a_split_or_subset_that_does_not_exist_is_named_with_those_that_do(directory: Path) -> None:
    with pytest.raises(DataError, match=r"split 'dev'.*Should be one of.*train.*test.*mend data\.split"):
        load_data(HubConfig(path=str(directory), split="dev", **FIELDS))
    with pytest.raises(DataError, match=r"BuilderConfig 'hard' not found.*data\.subset"):
        load_data(HubConfig(path=str(directory), subset="hard", **FIELDS))


def test_a_field_missing_in_one_of_ten_thousand_rows_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [{"question": None if n == 6_543 else f"{n}?", "answer": str(n)} for n in range(10_000)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet train row 6543: field 'question' must be a text.*got None"):
        load_data(HubConfig(path=str(tmp_path / "rows.parquet"), **FIELDS))
    with pytest.raises(DataError, match="row 0: field 'gold' is missing; the line has question, answer"):
        load_data(HubConfig(path=str(tmp_path / "rows.parquet"), prompt_field="question", gold_field="gold"))


def test_a_hub_that_cannot_be_reached_is_one_sentence_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub (ConnectError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'nobody/nothing' cannot be loaded.*check the name and the network, or put"):
        load_data(HubConfig(path="nobody/nothing"))


# -- a function of one's own ---------------------------------------------------------------------------------------


def sums(count: int = 4, split: str = "train") -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"prompt": f"{split} {number}+1?", "answer": f"sum {number + 1}"}


def samples() -> list[Sample]:
    return [Sample(sample_id=f"own/{n}", prompt=f"{n}?", gold=str(n)) for n in range(3)]


def broken(kind: str) -> Iterator[Any]:
    yield {"prompt": "good"}
    if kind == "raises":
        raise KeyError("question")
    yield {
        "list": ["no row"],
        "gold": Sample(sample_id="x", prompt="y", gold=3),  # type: ignore[arg-type]
        "prompt": Sample(sample_id="x", prompt=[{"role": "cat", "content": "miaow"}]),
        "nan": {"prompt": "x", "level": float("nan")},
        "missing": {"question": "x"},
    }[kind]


HERE = "tests.data.test_hub"


def test_a_function_that_yields_rows_is_a_data_set_and_its_arguments_choose_the_sides() -> None:
    config = FunctionConfig(fn=f"{HERE}:sums", args={"count": 3}, heldout_args={"split": "test"}, gold_field="answer")
    data = load_data(config)
    assert [(sample.sample_id, sample.prompt) for sample in data.train[:2]] == [
        ("function/train/1", "train 0+1?"),
        ("function/train/2", "train 1+1?"),
    ]
    assert [sample.prompt for sample in data.heldout] == [f"test {n}+1?" for n in range(3)]


def test_a_function_may_return_samples_of_which_some_are_held_out() -> None:
    data = load_data(FunctionConfig(fn=f"{HERE}:samples", num_heldout=1))
    assert {sample.sample_id for sample in (*data.train, *data.heldout)} == {"own/0", "own/1", "own/2"}


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("raises", "row 2 of .*:broken: the function failed .KeyError: 'question'."),
        ("list", "row 2 of .*:broken is of type list; yield mappings, or Samples"),
        ("gold", "row 2 of .*: gold must be a text or None, got 3"),
        ("prompt", "row 2 of .*: turn 1 of 'prompt' needs a role"),
        ("nan", "row 2 of .*: field 'level' is nan"),
        ("missing", "row 2 of .*: field 'prompt' is missing; the line has question"),
    ],
)
def test_what_a_function_yields_wrongly_is_named_with_its_row(kind: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data(FunctionConfig(fn=f"{HERE}:broken", args={"kind": kind}))


def test_a_function_that_is_not_there_and_arguments_that_it_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data: module 'tests\.data\.test_hub' has no function 'nothing'"):
        load_data(FunctionConfig(fn=f"{HERE}:nothing"))
    with pytest.raises(ConfigError, match="unknown argument 'size'; its arguments are: count, split"):
        load_data(FunctionConfig(fn=f"{HERE}:sums", args={"size": 3}))
