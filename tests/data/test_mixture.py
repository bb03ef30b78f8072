"""Mixtures are drawn by weight, go on exactly where they stopped, and keep their sources apart; further held-out sets."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from troupe.config.data import MixtureConfig
from troupe.config.own_data import JsonlConfig
from troupe.data import MixedStream, load_data, stream_of
from troupe.errors import DataError
from troupe.records import Sample


def write(path: Path, count: int, answer: str = "four") -> str:
    rows = [{"prompt": f"{path.stem} {n}?", "completion": answer} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mixture(tmp_path: Path, **weights: float) -> MixtureConfig:
    sources = {
        "maths": JsonlConfig(path=write(tmp_path / "maths.jsonl", 12), num_heldout=2),
        "chats": JsonlConfig(path=write(tmp_path / "chats.jsonl", 5, "hello"), num_heldout=1),
    }
    return MixtureConfig(sources=sources, weights=weights)


def test_samples_know_their_source_and_held_out_ones_come_in_turns(tmp_path: Path) -> None:
    data = load_data(mixture(tmp_path))
    assert Counter(sample.fields["source"] for sample in data.train) == {"maths": 10, "chats": 4}
    assert [sample.fields["source"] for sample in data.heldout] == ["maths", "chats", "maths"]
    assert all(sample.sample_id.startswith(f"{sample.fields['source']}/") for sample in data.train)
    sets = data.heldout_sets(2)
    assert {name: len(samples) for name, samples in sets.items()} == {"mixture": 2, "maths": 1, "chats": 1}
    assert data.weights == {"maths": 10, "chats": 4}  # by their samples


def sources_of(samples: list[Sample]) -> list[str]:
    return [sample.fields["source"] for sample in samples]


def test_every_stretch_holds_the_shares_and_each_source_comes_in_epochs_of_its_own(tmp_path: Path) -> None:
    data = load_data(mixture(tmp_path, maths=3.0, chats=1.0))
    taken = stream_of(data, seed=0).take(40)
    for start in range(0, 40, 8):
        assert Counter(sources_of(taken[start : start + 8])) == {"maths": 6, "chats": 2}
    maths = [sample.sample_id for sample in taken if sample.fields["source"] == "maths"]
    assert [sorted(Counter(maths[start : start + 10]).values()) for start in (0, 10, 20)] == [[1] * 10] * 3
    assert maths[:10] != maths[10:20]


def ids(samples: list[Sample]) -> list[str]:
    return [sample.sample_id for sample in samples]


@pytest.mark.parametrize("taken", [0, 1, 7, 40])
def test_a_mixture_goes_on_exactly_where_another_stopped(tmp_path: Path, taken: int) -> None:
    data = load_data(mixture(tmp_path, maths=2.0, chats=1.7))
    stopped = stream_of(data, seed=3)
    stopped.take(taken)
    state = json.loads(json.dumps(stopped.state()))  # as a checkpoint keeps it
    assert state["position"] == taken
    assert ids(stream_of(data, 3, state).take(30)) == ids(stopped.take(30))


def test_the_seed_decides_the_order(tmp_path: Path) -> None:
    data = load_data(mixture(tmp_path))
    assert ids(stream_of(data, 0).take(14)) != ids(stream_of(data, 1).take(14))


def test_other_weights_hold_from_the_checkpoint_on_and_are_said(tmp_path: Path, caplog: Any) -> None:
    stopped = stream_of(load_data(mixture(tmp_path, maths=3.0, chats=1.0)), seed=0)
    seen = stopped.take(8)
    with caplog.at_level(logging.WARNING):
        changed = stream_of(load_data(mixture(tmp_path, maths=1.0, chats=1.0)), 0, stopped.state())
        after = changed.take(8)
    assert "the mixture changed since the checkpoint (maths 75% -> 50%, chats 25% -> 50%)" in caplog.text
    assert Counter(sources_of(after)) == {"maths": 4, "chats": 4}  # and not more chats, to make up for the past
    maths = [sample.sample_id for sample in (*seen, *after) if sample.fields["source"] == "maths"]
    assert len(set(maths)) == 10  # 6 + 4 of an epoch of 10: none comes twice


def test_a_source_that_comes_later_begins_at_its_beginning(tmp_path: Path) -> None:
    data = load_data(mixture(tmp_path))
    maths = {"maths": [sample for sample in data.train if sample.fields["source"] == "maths"]}
    alone = MixedStream(maths, {"maths": 1.0}, seed=0)
    alone.take(3)
    both = stream_of(data, 0, alone.state())
    assert both.metrics() == {"data/maths/epochs": 0.3, "data/chats/epochs": 0.0}


def test_a_mistake_in_a_source_names_it(tmp_path: Path) -> None:
    missing = {"a": JsonlConfig(path=write(tmp_path / "a.jsonl", 4)), "b": JsonlConfig(path=str(tmp_path / "b.jsonl"))}
    with pytest.raises(DataError, match=r"source b of the mixture: there is no file .*b\.jsonl"):
        load_data(MixtureConfig(sources=missing))


def test_further_held_out_sets_are_the_held_out_side_or_all_rows_of_a_file(tmp_path: Path) -> None:
    others = {
        "file": JsonlConfig(path=write(tmp_path / "file.jsonl", 6)),
        "side": JsonlConfig(path=write(tmp_path / "x.jsonl", 6), heldout_path=write(tmp_path / "side.jsonl", 2)),
    }
    data = load_data(JsonlConfig(path=write(tmp_path / "train.jsonl", 9), num_heldout=3), others)
    assert {name: len(samples) for name, samples in data.others.items()} == {"file": 6, "side": 2}
    assert {name: len(samples) for name, samples in data.heldout_sets(3).items()} == {"jsonl": 3, "file": 3, "side": 2}
    assert data.others["side"][0].sample_id == "side/side.jsonl:1"


def test_a_further_held_out_set_is_named_in_mistakes_and_warnings(tmp_path: Path, caplog: Any) -> None:
    train = JsonlConfig(path=write(tmp_path / "train.jsonl", 9), num_heldout=1)
    with pytest.raises(DataError, match=r"heldout other: there is no file"):
        load_data(train, {"other": JsonlConfig(path=str(tmp_path / "nowhere.jsonl"))})
    with pytest.raises(DataError, match="heldout: jsonl is what the run's own held-out set is called"):
        load_data(train, {"jsonl": train})
    with caplog.at_level(logging.WARNING):
        load_data(train, {"other": train})
    assert "other: 8 of 9 held-out prompts also occur in training" in caplog.text
