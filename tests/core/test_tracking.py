"""Trackers get what metrics.jsonl gets, and cannot hurt a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.files import read_lines
from core.run import Run


def test_wandb_online_without_a_key_is_refused_before_anything_starts(recipe, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ConfigError, match="WANDB_API_KEY is not in the environment; set it, or WANDB_MODE=offline"):
        Run.open(recipe(trackers=("wandb",))).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_wandb_offline_and_tensorboard_write_their_files_without_secrets_and_keep_their_id(
    recipe, monkeypatch, tmp_path: Path
) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for _ in range(2):
        with Run.open(recipe(trackers=("wandb", "tensorboard"))) as run:
            for step in run.steps(1, 2):
                run.log({"reward/mean": 0.5})
                run.end_step(step)
        ids.append((run.directory / "wandb_id").read_text())
    assert ids[0] == ids[1]
    assert len(list(run.directory.glob(f"wandb/offline-run-*/run-{ids[0].strip()}.wandb"))) == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if key.encode() in path.read_bytes()] == []
    assert tensorboard_steps(run.directory) == [1, 2]


def tensorboard_steps(directory: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("reward/mean")]


class BrokenTracker:
    name = "broken"

    def log(self, step, metrics) -> None:
        raise ConnectionError("no route")

    def finish(self, *, failed: bool) -> None:
        raise AssertionError("it was dropped")


def test_a_tracker_that_fails_is_dropped_with_an_event_and_the_run_goes_on(recipe) -> None:
    with Run.open(recipe()) as run:
        run._trackers.append(BrokenTracker())
        for step in run.steps(1, 3):
            run.end_step(step)
    assert [line["step"] for line in read_lines(run.directory / "metrics.jsonl")] == [1, 2, 3]
    events = [event for event in read_lines(run.directory / "events.jsonl") if event["kind"] == "tracker_failed"]
    assert [(event["tracker"], event["error"]) for event in events] == [("broken", "ConnectionError: no route")]
