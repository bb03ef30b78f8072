"""A run goes on with the held-out rows that it began with, whatever became of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.actors.small import write_model
from troupe.config.supervised import SFTConfig
from troupe.data import DataSet
from troupe.errors import DataError
from troupe.files import read_json, read_lines
from troupe.jobs.train_sft import train_sft
from troupe.records import Sample
from troupe.training import context, supervised
from troupe.training.kept_data import data_of_run, model_of_run


class FakeRun:
    """A run's directory, with or without a checkpoint in it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.checkpoints, self.step = directory, self, None
        self.events: list[dict[str, Any]] = []

    def latest(self) -> int | None:
        return self.step

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})


def samples(*names: str) -> list[Sample]:
    return [Sample(sample_id=f"f:{place}", prompt=name) for place, name in enumerate(names)]


def sides(data: DataSet) -> tuple[str, str]:
    return "".join(str(s.prompt) for s in data.train), "".join(str(s.prompt) for s in data.heldout)


def begun(tmp_path: Path, train: str, heldout: str, **known: bool) -> FakeRun:
    run = FakeRun(tmp_path)
    data_of_run(run, DataSet(name="d", train=samples(*train), heldout=samples(*heldout), **known))  # type: ignore[arg-type]
    run.step = 2
    return run


@pytest.mark.parametrize(
    ("one_file", "train", "heldout", "expected"),
    [
        (True, "abc", "xy", ("abc", "xy")),  # as it was
        (True, "cab", "yx", ("cab", "xy")),  # another order
        (True, "abcdx", "ey", ("eabcd", "xy")),  # new rows d and e are trained on, x changed sides and comes back
        (True, "abcx", "xy", ("abc", "xy")),  # a copy of a held-out row is left out
        (True, "ac", "x", ("ac", "x")),  # rows are gone
        (False, "abcd", "exy", ("abcd", "xy")),  # a new row of the held-out file is no training row
        (False, "abcx", "xyz", ("abcx", "xy")),  # a training file may repeat a held-out row, as it could before
    ],
)
def test_the_held_out_rows_of_a_run_are_those_of_its_beginning(
    tmp_path: Path, one_file: bool, train: str, heldout: str, expected: tuple[str, str]
) -> None:
    run = begun(tmp_path, "abc", "xy", from_one_file=one_file)
    data = DataSet(name="d", train=samples(*train), heldout=samples(*heldout), from_one_file=one_file)
    assert sides(data_of_run(run, data)) == expected  # type: ignore[arg-type]


def test_a_run_without_a_checkpoint_begins_anew_with_what_is_there(tmp_path: Path) -> None:
    run = begun(tmp_path, "abc", "xy", from_one_file=True)
    run.step = None
    assert sides(data_of_run(run, DataSet(name="d", train=samples("x"), heldout=samples("a")))) == ("x", "a")  # type: ignore[arg-type]


def test_a_run_of_which_no_held_out_row_is_left_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path, "abc", "xy", from_one_file=True)
    with pytest.raises(DataError, match=r"none of the 2 rows .* begin anew with run\.resume=never"):
        data_of_run(run, DataSet(name="d", train=samples(*"abc"), heldout=samples("z"), from_one_file=True))  # type: ignore[arg-type]


def test_a_model_made_of_the_data_is_the_one_of_the_beginning(tmp_path: Path) -> None:
    run, changed = begun(tmp_path, "abc", "xy"), DataSet(name="d", train=samples(*"abcd"), heldout=samples(*"xy"))
    same = DataSet(name="d", train=samples(*"abc"), heldout=samples(*"xy"))
    run.step = None
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert model_of_run(run, same, lambda: str(model)) == str(model)  # type: ignore[arg-type]
    run.step = 2
    assert model_of_run(run, changed, lambda: "another tokenizer") == str(model)  # type: ignore[arg-type]
    (model / "config.json").unlink()
    assert model_of_run(run, same, lambda: "made again") == "made again"  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is gone, and the data it was made of changed since"):
        model_of_run(run, changed, lambda: "another tokenizer")  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_rank")
def test_a_job_whose_file_grew_goes_on_with_the_new_rows_and_the_old_held_out_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": f"Tom has {n} pens. How many?", "answer": f"{n} pens"} for n in range(60)]
    write_model(tmp_path / "model", tied=True)
    trained: list[set[str]] = []
    heldout: list[list[str]] = []

    class Watched(supervised.Examples):
        def draw(self, count: int, stream: Any = None) -> Any:
            groups = super().draw(count, stream)
            trained[-1] |= {group.sample.prompt for group in groups}
            return groups

    monkeypatch.setattr(supervised, "Examples", Watched)
    split = context.data_of_run

    def watched_split(run: Any, data: DataSet) -> DataSet:
        kept = split(run, data)
        heldout.append([str(sample.prompt) for sample in kept.heldout])
        return kept

    monkeypatch.setattr(context, "data_of_run", watched_split)
    for count, steps in ((40, 2), (60, 12)):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        trained.append(set())
        train_sft(
            SFTConfig(
                steps=steps,
                batch_size=8,
                max_length=64,
                run={"name": "grows", "directory": str(tmp_path)},
                model={"type": "pretrained", "path": str(tmp_path / "model")},
                data={"type": "jsonl", "path": str(tmp_path / "rows.jsonl"), "gold_field": "answer", "num_heldout": 6},
                engine={"precision": "fp32", "zero_stage": 1, "row_tokens": 128},
                evaluation={"every": 0},
                checkpoint={"every": 0},
                placement={"backend": "inline"},
            )
        )
    assert heldout[0] == heldout[1]
    assert not (trained[0] | trained[1]) & set(heldout[0])
    # Ten steps of eight: the epoch over 34 rows that was under way ends, one over all 54 begins and ends.
    assert trained[1] == {row["prompt"] for row in rows} - set(heldout[0])
    (event,) = [each for each in read_lines(tmp_path / "grows" / "events.jsonl") if each["kind"] == "data_changed"]
    assert (event["train_before"], event["train"], event["heldout_gone"]) == (34, 54, 0)
    assert "34 training rows then, 54 now; held out are the same 6 rows" in caplog.text
    assert len(read_json(tmp_path / "grows" / "data.json")["heldout"]) == 6
