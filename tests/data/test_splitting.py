import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from troupe.config.tools import RowFilterConfig
from troupe.data.dataset import DataSet
from troupe.data.splitting import Item, items_of_file, items_of_samples, quantiles, split, text_in
from troupe.errors import DataError
from troupe.records import Sample

GPU_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def items(**sizes: int) -> list[Item]:
    """So many rows of each key."""
    return [Item(key=key, row={"key": key, "n": n}, texts={}) for key, size in sizes.items() for n in range(size)]


def sizes(parts: dict[str, list[Item]]) -> dict[str, int]:
    return {name: len(part) for name, part in parts.items()}


def test_five_rows_give_each_of_three_files_one_where_rounding_would_leave_one_empty() -> None:
    # 80 / 10 / 10 of 5 rows are 4 / 0.5 / 0.5.
    parts = split(items(a=1, b=1, c=1, d=1, e=1), GPU_SHARES, seed=42, key=None)
    assert sizes(parts) == {"train": 3, "val": 1, "test": 1}


def test_a_key_is_in_one_file_and_every_row_is_kept() -> None:
    whole = items(**{f"story{n}": 1 + n % 7 for n in range(40)})
    parts = split(whole, GPU_SHARES, seed=0, key="story")
    keys = [{item.key for item in part} for part in parts.values()]
    assert sum(len(each) for each in keys) == len(set().union(*keys)) == 40
    assert sorted(id(item) for part in parts.values() for item in part) == sorted(id(item) for item in whole)
    # 155 rows in all: sixteen each for val and test (15.5, to the nearest even), to be filled by stories of one to
    # seven.
    assert 14 <= len(parts["val"]) <= 16
    assert 14 <= len(parts["test"]) <= 16


def test_a_story_larger_than_a_share_goes_to_the_largest_share() -> None:
    for seed in range(10):
        parts = split(items(giant=60, **{f"s{n}": 1 for n in range(40)}), GPU_SHARES, seed=seed, key="story")
        assert sizes(parts) == {"train": 80, "val": 10, "test": 10}
        assert "giant" in {item.key for item in parts["train"]}


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    whole = items(**{f"s{n}": 1 for n in range(50)})
    first, again = (split(each, GPU_SHARES, seed=1, key=None) for each in (whole, whole[::-1]))
    other = split(whole, GPU_SHARES, seed=2, key=None)
    keys = [{item.key for item in parts["val"]} for parts in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]


def test_fewer_keys_than_files_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 different story_id are too few for 3 files \(train, val, test\)"):
        split(items(a=100, b=100), GPU_SHARES, seed=0, key="story_id")


def rows(path: Path, *each: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in each))
    return path


def test_rows_outside_their_bounds_and_equal_rows_are_counted_by_reason(tmp_path: Path) -> None:
    def row(words: int, index: int) -> dict[str, Any]:
        return {"next_chapter": "word " * words, "chapter_index": index}

    path = rows(tmp_path / "s.jsonl", row(200, 2), row(201, 2), row(201, 2), row(201, 1), row(4999, 2), row(5000, 3))
    filters = [
        RowFilterConfig(field="next_chapter", min_words=201, max_words=4999),
        RowFilterConfig(field="chapter_index", at_least=2),
    ]
    dropped: Counter[str] = Counter()
    kept = items_of_file(path, None, filters, dropped)
    assert [len(item.row["next_chapter"].split()) for item in kept] == [201, 4999]
    assert dropped == {"short_next_chapter": 1, "equal_rows": 1, "low_chapter_index": 1, "long_next_chapter": 1}


def test_a_bound_on_a_field_that_is_no_number_names_the_line(tmp_path: Path) -> None:
    path = rows(tmp_path / "s.jsonl", {"chapter_index": "two"})
    with pytest.raises(DataError, match=r"s\.jsonl line 1: field 'chapter_index' must be a number"):
        items_of_file(path, None, [RowFilterConfig(field="chapter_index", at_least=2)], Counter())
    with pytest.raises(DataError, match=r"s\.jsonl line 1: field 'words' is missing"):
        items_of_file(path, None, [RowFilterConfig(field="words", max_words=2)], Counter())


def test_equal_prompts_of_a_data_set_stay_together() -> None:
    samples = [Sample(sample_id=f"s/{n}", prompt=f"prompt {n % 6}", gold=str(n)) for n in range(60)]
    whole = items_of_samples(DataSet(name="s", train=samples[:50], heldout=samples[50:]), None)
    parts = split(whole, {"a": 0.5, "b": 0.5}, seed=0, key=None)
    prompts = [{item.row["prompt"] for item in part} for part in parts.values()]
    assert sizes(parts) == {"a": 30, "b": 30}
    assert not prompts[0] & prompts[1]


def test_the_words_of_chats_lists_and_mappings_count() -> None:
    assert (
        text_in([{"role": "user", "content": "Hi you"}, {"role": "assistant", "content": "Hello"}]) == "Hi you\nHello"
    )
    assert text_in({"Ada": "Waits.", "Bo": ["Runs.", "Falls."]}) == "Waits.\nRuns.\nFalls."
    assert text_in(7) == ""


def test_quantiles_are_lengths_that_occur() -> None:
    # Nearest rank of 20 values: the median is the 10th, 95 % the 19th.
    assert quantiles(range(1, 21)) == {"mean": 10.5, "min": 1, "median": 10, "p95": 19, "max": 20}
    assert quantiles([5]) == {"mean": 5.0, "min": 5, "median": 5, "p95": 5, "max": 5}
