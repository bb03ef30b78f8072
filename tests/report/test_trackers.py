"""Trackers get what metrics.jsonl gets, and cannot hurt a run."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from troupe.config.run import RunConfig, WandbConfig
from troupe.errors import ConfigError
from troupe.files import read_lines
from troupe.records import Branch, Group, Sample, Score
from troupe.report import trackers as tracking
from troupe.report.observers import open_run
from troupe.report.trackers import check_trackers, log_evaluation
from troupe.runs.checkpoint import CheckpointStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def offline(monkeypatch, tmp_path: Path) -> None:
    """W&B without a network, and without files in the home directory."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


def test_wandb_online_without_a_key_is_refused_before_anything_starts(recipe, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(
        ConfigError, match="neither WANDB_API_KEY in the environment nor a login; set it, or run `wandb login`"
    ):
        open_run(recipe(trackers=("wandb",))).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_wandb_offline_and_tensorboard_write_their_files_without_secrets_and_keep_their_id(
    recipe, monkeypatch, tmp_path: Path
) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for _ in range(2):
        with open_run(recipe(trackers=("wandb", "tensorboard"))) as run:
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

    def on_step(self, step, metrics) -> None:
        raise ConnectionError("no route")

    def on_close(self, state) -> None:
        raise AssertionError("it was dropped")


def test_a_tracker_that_fails_is_dropped_with_an_event_and_the_run_goes_on(recipe) -> None:
    with open_run(recipe()) as run:
        run.observe(BrokenTracker())
        for step in run.steps(1, 3):
            run.end_step(step)
    assert [line["step"] for line in read_lines(run.directory / "metrics.jsonl")] == [1, 2, 3]
    events = [event for event in read_lines(run.directory / "events.jsonl") if event["kind"] == "tracker_failed"]
    assert [(event["tracker"], event["error"]) for event in events] == [("broken", "ConnectionError: no route")]


# -- what Weights & Biases gets ----------------------------------------------------------------------------------


def sent(directory: Path) -> list[tuple[str, Any]]:
    """(kind, record) of the run that is stored in `directory`, to its end: W&B's process writes a little behind."""
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while True:
        records = list(stored(file.read_bytes()))
        if any(kind == "exit" for kind, _ in records):
            return records
        assert time.monotonic() < deadline, "W&B never wrote the end of the run"
        time.sleep(0.1)


def stored(data: bytes) -> Iterator[tuple[str, Any]]:
    """(kind, record) of a file of W&B: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a record's header is never split over blocks
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            kind_of_record = record.WhichOneof("record_type")
            yield kind_of_record, getattr(record, kind_of_record)


def logged(directory: Path) -> list[dict[str, Any]]:
    """The history of the run as name -> value; of tables and histograms their type."""
    lines = []
    for kind, record in sent(directory):
        if kind == "history":
            items = [(item.nested_key or [item.key], json.loads(item.value_json)) for item in record.item]
            lines.append({keys[0]: value for keys, value in items if len(keys) == 1 or keys[1] == "_type"})
    return lines


def write_checkpoint(store: CheckpointStore, step: int) -> None:
    with store.writing(step) as path:
        (path / "model.safetensors").write_bytes(b"w" * step)
        (path / "state.json").write_text("{}")
        (path / "trainer_state").mkdir()
        (path / "trainer_state" / "shard.pt").write_bytes(b"o" * 100)


def test_wandb_gets_settings_names_curves_tables_histograms_and_the_checkpoints_without_trainer_state(
    recipe, offline, tmp_path: Path
) -> None:
    wandb = WandbConfig(project="summaries", entity="us", tags=["first"], artifacts="all")
    config = recipe().model_copy(
        update={"run": RunConfig(name="long answers", directory=str(tmp_path), trackers=["wandb"], wandb=wandb)}
    )
    branches = [Branch(token_ids=(1,), text=text, finish_reason="stop") for text in ("yes", "no")]
    group = Group(sample=Sample(sample_id="a", prompt="p", gold="g"), prompt_ids=(1,), branches=branches)
    with open_run(config) as run:
        for step in run.steps(1, 3):
            run.log({"reward/mean": 0.5})
            run.log_rollouts(step, [group.with_scores([Score(value=1.0), Score(value=0.0)])], limit=2)
            if step == 2:
                answer = {"sample_id": "a", "prompt": "p", "gold": "g", "text": "t", "metrics": {"accuracy": 1.0}}
                run.log({"eval/held/accuracy": 1.0})
                run.log_answers(step, "held", [answer])
            write_checkpoint(run.checkpoints, step)
            run.checkpoints.record_metric(step, {1: 0.1, 2: 0.9, 3: 0.2}[step])
            run.end_step(step)

    begun = next(record for kind, record in sent(run.directory) if kind == "run")
    assert (begun.project, begun.entity, begun.display_name) == ("summaries", "us", "long answers")
    assert {"first", "word_problems", "scratch-128x4"} <= set(begun.tags)
    history = logged(run.directory)
    assert [(line["step"], line["reward/mean"]) for line in history] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert history[1]["answers/held"] == history[1]["rollouts/answers"] == "table-file"
    assert history[1]["rollouts/rewards"] == "histogram"
    assert "rollouts/rewards" not in history[0]

    models = [record for kind, record in sent(run.directory) if kind == "artifact" and record.type == "model"]
    uploads = [{alias for alias in record.aliases if alias != "latest"} for record in models]
    assert uploads == [{"step-1"}, {"step-2"}, {"step-3"}, {"step-2", "best"}, {"step-3", "final"}]
    for step, record in zip((1, 2, 3, 2, 3), models, strict=True):
        assert [(file.path, file.size) for file in record.manifest.contents] == [("model.safetensors", step)]
        assert Path(record.manifest.contents[0].local_path).is_file()  # `wandb sync` will look for it

    (report,) = [record for kind, record in sent(run.directory) if kind == "artifact" and record.type == "report"]
    files = {file.path: Path(file.local_path) for file in report.manifest.contents}
    assert set(files) == {"report.html", "samples.table.json"}
    assert "eval/held/accuracy" in files["report.html"].read_text()
    samples = json.loads(files["samples.table.json"].read_text())
    assert samples["columns"] == ["step", "sample", "prompt", "answer", "gold", "accuracy"]
    assert samples["data"] == [[2, "a", "p", "t", "g", 1.0]]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("report", []),
        ("best", [{"step-1", "best"}]),
        ("final", [{"step-1", "best"}, {"step-2", "final"}]),
    ],
)
def test_what_is_uploaded_at_the_end_is_what_was_asked_for(
    recipe, offline, wanted: str, expected: list[set[str]]
) -> None:
    config = recipe(trackers=("wandb",))
    wandb = WandbConfig(artifacts=wanted)
    with open_run(config.model_copy(update={"run": config.run.model_copy(update={"wandb": wandb})})) as run:
        for step in run.steps(1, 2):
            write_checkpoint(run.checkpoints, step)
            run.checkpoints.record_metric(step, 1 / step)
            run.end_step(step)
    artifacts = [record for kind, record in sent(run.directory) if kind == "artifact"]
    uploads = [{alias for alias in one.aliases if alias != "latest"} for one in artifacts if one.type == "model"]
    assert uploads == expected
    assert [one.type for one in artifacts].count("report") == 1


def test_an_evaluation_is_logged_as_numbers_and_as_tables(offline, tmp_path: Path) -> None:
    measured = {
        "models": {"sft": {"rouge": {"mean": 0.25, "low": 0.2, "high": 0.3}}},
        "comparisons": {"ppo against sft": {"win_rate": {"mean": 0.75, "low": 0.5, "high": 1.0}}},
    }
    log_evaluation(["wandb", "tensorboard"], directory=tmp_path, values={"models": {"sft": "a"}}, measured=measured)
    numbers, tables = logged(tmp_path)
    assert (numbers["evaluation/sft/rouge"], numbers["evaluation/ppo against sft/win_rate"]) == (0.25, 0.75)
    assert (tables["evaluation/models"], tables["evaluation/comparisons"]) == ("table-file", "table-file")
    assert list((tmp_path / "tensorboard").iterdir())


LOGGED_IN = """
import os, sys
from troupe.report.trackers import check_trackers
from troupe.secrets import public_text
check_trackers(["wandb"], mode="online")
print(public_text(sys.argv[1]))
"""


def test_wandb_login_is_honoured_and_its_key_masked(tmp_path: Path) -> None:
    # A process of its own: a login stays with W&B's library until the process ends.
    key = "0123456789abcdef" * 2 + "01234567"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {key}\n")
    (tmp_path / "netrc").chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"NETRC": str(tmp_path / "netrc"), "HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", LOGGED_IN, key], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert (ran.returncode, ran.stdout) == (0, "$WANDB_API_KEY\n"), ran.stderr
    assert key not in ran.stderr
    assert [
        file for file in tmp_path.rglob("*") if file.is_file() and file.name != "netrc" and key in file.read_text()
    ] == []


def test_the_recipe_may_ask_for_offline_and_then_no_key_is_needed(monkeypatch) -> None:
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    check_trackers(["wandb"], mode="offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        check_trackers(["wandb"], mode="online")


class SlowUploads:
    """A W&B run whose uploads wait until they are allowed; remembers the bytes it read."""

    offline = False

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.read: list[tuple[tuple[str, ...], bytes]] = []

    def log_artifact(self, artifact, aliases) -> SimpleNamespace:
        def wait(timeout: int) -> None:
            assert self.allowed.wait(30)
            self.read += [
                (tuple(aliases), Path(entry.local_path).read_bytes()) for entry in artifact.manifest.entries.values()
            ]

        return SimpleNamespace(wait=wait)


def test_a_slow_upload_holds_no_step_and_still_reads_a_checkpoint_that_was_removed(tmp_path: Path) -> None:
    store, slow = CheckpointStore(tmp_path / "checkpoints", keep_last=1), SlowUploads()
    artifacts = tracking._Artifacts(slow, tmp_path, "model")
    for step in (1, 2):
        write_checkpoint(store, step)
        artifacts.take_new()  # returns although nothing can be uploaded yet
    assert store.steps() == [2]
    assert slow.read == []
    slow.allowed.set()
    assert artifacts.finish() == []
    assert slow.read == [(("step-1",), b"w"), (("step-2",), b"ww"), (("step-2",), b"ww")]
    assert list((tmp_path / "wandb" / "checkpoints").iterdir()) == []


def test_checkpoints_that_cannot_be_uploaded_are_told_in_an_event_and_the_run_is_finished(
    recipe, offline, monkeypatch, tmp_path: Path
) -> None:
    def refuse(self, step: int, path: Path, aliases: list[str]) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tracking._Artifacts, "_upload", refuse)
    config = recipe(trackers=("wandb",))
    wandb = WandbConfig(artifacts="best")
    with open_run(config.model_copy(update={"run": config.run.model_copy(update={"wandb": wandb})})) as run:
        for step in run.steps(1, 2):
            write_checkpoint(run.checkpoints, step)
            run.end_step(step)
    events = read_lines(run.directory / "events.jsonl")
    assert [event["kind"] for event in events] == ["opened", "finished", "tracker_failed"]
    assert events[-1]["error"] == (
        "RuntimeError: 1 checkpoints were not uploaded, the first: step 2: ConnectionError: no route"
    )


def test_without_links_a_checkpoint_is_uploaded_from_where_it_lies(monkeypatch, tmp_path: Path) -> None:
    def no_links(source: str, target: str, **options) -> None:
        raise OSError("this file system has no links")

    monkeypatch.setattr(os, "link", no_links)
    store, run = CheckpointStore(tmp_path / "checkpoints"), SlowUploads()
    run.allowed.set()
    write_checkpoint(store, 1)
    artifacts = tracking._Artifacts(run, tmp_path, "model")
    assert artifacts.finish() == []
    assert run.read == [(("step-1",), b"w")]
    assert store.steps() == [1]
