from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.data.packages import words
from troupe.config.made_data import DocstringPairsConfig, DocstringsConfig
from troupe.data import DataSet
from troupe.data.docstrings import load_docstring_pairs, load_docstrings
from troupe.records import Sample


def load(root: Path, *, num_heldout: int = 10, **settings: Any) -> DataSet:
    config = DocstringPairsConfig(roots=[str(root)], num_heldout=num_heldout, **settings)
    return load_docstring_pairs(config, cache=root.parent / "cache")


def ids(samples: Sequence[Sample]) -> list[str]:
    return [sample.sample_id for sample in samples]


def test_texts_ids_and_the_held_out_choice_are_those_of_docstrings(root: Path) -> None:
    for seed in range(3):
        config = DocstringsConfig(roots=[str(root)], num_heldout=10, seed=seed)
        texts, pairs = load_docstrings(config, cache=root.parent / "cache"), load(root, seed=seed)
        for side in ("train", "heldout"):
            for text, pair in zip(getattr(texts, side), getattr(pairs, side), strict=True):
                assert (text.sample_id, text.prompt, text.gold) == (pair.sample_id, pair.prompt, pair.gold)
                assert text.fields.items() <= pair.fields.items()


def test_held_out_packages_occur_nowhere_in_training(root: Path) -> None:
    data = load(root)
    train, heldout = ({sample.fields["package"] for sample in side} for side in (data.train, data.heldout))
    assert (len(train), len(heldout)) == (6, 2)
    assert not train & heldout


def test_the_human_summary_is_the_best_answer_and_all_damaged_ones_tie(root: Path) -> None:
    for sample in load(root, pairs_per_text=3).train:
        best, *worse = sample.fields["answers"]
        assert best == sample.gold == sample.fields["demonstration"]
        assert sample.fields["ranks"] == [0, 1, 1, 1]
        assert sorted(sample.fields["damage"]) == ["corrupted", "truncated", "wrong"]
        assert len({best, *worse}) == 4
    assert all(len(sample.fields["answers"]) == 2 for sample in load(root).train)


def test_a_wrong_summary_belongs_to_another_text_of_the_same_side_and_half(root: Path) -> None:
    for half in ("all", "first", "second"):
        data = load(root, kinds=["wrong"], half=half)
        for side in (data.train, data.heldout):
            golds = {sample.gold for sample in side}
            assert all(sample.fields["answers"][1] in golds - {sample.gold} for sample in side)


def test_the_halves_share_no_text_whatever_the_damage_and_leave_the_held_out_texts_alone(root: Path) -> None:
    whole, first = load(root), load(root, half="first", damage_seed=1)
    second = load(root, half="second", damage_seed=2)
    assert len(first.train) == len(second.train) == 18
    assert set(ids(first.train)) | set(ids(second.train)) == set(ids(whole.train))
    assert ids(first.heldout) == ids(second.heldout) == ids(whole.heldout)


def test_the_damage_seed_changes_the_damage_and_nothing_else(root: Path) -> None:
    one, other = load(root), load(root, damage_seed=1)
    assert ids(one.train) == ids(other.train)
    assert [s.fields["answers"] for s in one.train] != [s.fields["answers"] for s in other.train]
    assert load(root) == one


def test_a_summary_without_a_grip_for_the_asked_damage_is_left_out_and_counted(root: Path) -> None:
    (root / "sockets" / "short.py").write_text(f'"""Internationalization-of-numbers.\n\n{words("numbers", 1)}\n"""\n')
    # With seven texts the package is the largest, which stays in training; the others have six each.
    assert load(root, kinds=["corrupted"]).dropped == {"not_damaged": 1}
    assert len(load(root, kinds=["corrupted"]).train) == 36
    assert load(root).dropped == {}


def test_kinds_are_named_once_and_at_least_one() -> None:
    for kinds in ([], ["wrong", "wrong"]):
        with pytest.raises(ValidationError, match="name each kind of damage once, and at least one"):
            DocstringPairsConfig(kinds=kinds)
