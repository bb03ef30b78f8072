"""jobs/runs.py: what there is, copies in both directions, deleting, and new runs from old ones."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.s3 import client
from troupe.config.grpo import GRPOConfig
from troupe.errors import CheckpointError, ConfigError, StorageError
from troupe.files import read_json, read_lines
from troupe.jobs.runs import main
from troupe.report.observers import open_run
from troupe.runs.checkpoint import CheckpointStore


@pytest.fixture
def url(s3: str, credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"runs-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    client(s3).create_bucket(Bucket=name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.chdir(tmp_path)
    return f"s3://{name}/team"


def write_run(name: str = "x", *, steps: int = 3, storage: str | None = None, **fields: object) -> Path:
    """A run with a line and a checkpoint at every step, the second the best."""
    config = GRPOConfig(
        steps=steps, run={"name": name, "storage": {"url": storage, "every": 0}}, checkpoint={"keep_last": 9}, **fields
    )
    with open_run(config) as run:
        for step in run.steps((run.checkpoints.latest() or 0) + 1, steps):
            run.log({"reward/mean": step / 10})
            with run.checkpoints.writing(step) as path:
                (path / "model.safetensors").write_bytes(bytes([step]) * 2000)
            run.checkpoints.record_metric(step, 1.0 if step == 2 else 0.1)
            run.end_step(step)
    return run.directory


def steps(path: Path) -> list[int]:
    return CheckpointStore(path / "checkpoints").steps()


def test_a_run_is_pushed_listed_pulled_and_deleted(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_run()
    main(["push", "runs/x", url, "--step", "all"])
    capsys.readouterr()
    main(["list", "runs", url])
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["runs/x", f"{url}/x"]
    for line in lines:
        assert "finished" in line
        assert "3/3" in line
        assert "1, 2 (best), 3" in line

    main(["pull", f"{url}/x", "--step", "1", "--into", "elsewhere"])
    assert steps(Path("elsewhere/x")) == [1]
    main(["pull", f"{url}/x", "--into", "elsewhere"])  # the rest of what a run needs, into the directory that is there
    assert steps(Path("elsewhere/x")) == [1, 2, 3]
    assert read_lines(Path("elsewhere/x/metrics.jsonl")) == read_lines(directory / "metrics.jsonl")

    main(["delete", f"{url}/x", "--keep", "1", "--yes"])
    main(["delete", "elsewhere/x", "--step", "3", "--yes"])
    assert steps(Path("elsewhere/x")) == [1, 2]
    assert (Path("elsewhere/x/checkpoints/latest")).resolve().name == "step-000002"
    capsys.readouterr()
    main(["list", f"{url}/x"])
    assert "2 (best), 3" in capsys.readouterr().out
    main(["delete", f"{url}/x", "--yes"])
    assert f"{url}/x: the whole run, " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="there are no runs in s3://"):
        main(["list", url])
    main(["delete", "elsewhere/x", "--yes"])
    assert list(Path("elsewhere").iterdir()) == []
    assert steps(directory) == [1, 2, 3]


def test_nothing_is_deleted_without_a_yes(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run()
    with pytest.raises(ConfigError, match="nothing is deleted without an answer; run it in a terminal, or give --yes"):
        main(["delete", "runs/x"])
    assert "runs/x: the whole run, " in capsys.readouterr().out

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(ConfigError, match="nothing was deleted"):
        main(["delete", "runs/x", "--step", "1"])
    assert steps(Path("runs/x")) == [1, 2, 3]
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    main(["delete", "runs/x", "--step", "1"])
    assert "runs/x: step 1, 2.2 KiB" in capsys.readouterr().out
    assert steps(Path("runs/x")) == [2, 3]


def test_push_goes_where_the_recipe_says_and_never_over_another_run(url: str) -> None:
    directory = write_run(storage=url)
    main(["push", "runs/x"])
    (directory / "events.jsonl").write_text('{"kind": "opened", "at": "another time"}\n')
    with pytest.raises(StorageError, match="holds another run than runs/x"):
        main(["push", "runs/x"])
    with pytest.raises(StorageError, match="runs/x is another run than s3://"):
        main(["pull", f"{url}/x"])


@pytest.mark.parametrize("stored", [False, True])
def test_a_fork_goes_on_from_the_step_under_its_own_name(
    stored: bool, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_run(storage=url if stored else None)
    source = f"{url}/x" if stored else "runs/x"
    main(["fork", source, "y", "--step", "2", "policy.learning_rate=3e-5"])
    told = capsys.readouterr().out
    assert "runs/y stands at step 2" in told
    assert "runs/y/config.yaml" in told
    fork = Path("runs/y")
    assert steps(fork) == [2]
    assert [line["step"] for line in read_lines(fork / "metrics.jsonl")] == [1, 2]
    assert read_json(fork / "checkpoints" / "index.json")["metrics"] == {"1": 0.1, "2": 1.0}
    recipe = OmegaConf.load(fork / "config.yaml")
    assert (recipe.run.name, recipe.policy.learning_rate) == ("y", 3e-5)
    before = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}

    write_run("y", policy={"learning_rate": 3e-5})
    assert [event["kind"] for event in read_lines(fork / "events.jsonl")] == ["forked", "opened", "finished"]
    assert [line["step"] for line in read_lines(fork / "metrics.jsonl")] == [1, 2, 3]
    assert {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()} == before
    with pytest.raises(ConfigError, match="runs/y exists; choose another name"):
        main(["fork", source, "y"])


BAD_INPUT = {
    "a bucket that is none": (["list", "s3://"], ConfigError, "the address is written s3://bucket/prefix"),
    "a directory without runs": (["list", "nowhere"], ConfigError, "there are no runs in nowhere"),
    "a push of nothing": (["push", "nowhere"], ConfigError, "nowhere is no run directory"),
    "a push to nowhere": (["push", "runs/x"], ConfigError, "the recipe of runs/x names no run.storage.url; say where"),
    "a pull of nothing": (["pull", "{url}/none"], StorageError, "/none holds no complete checkpoint"),
    "a step that is not there": (["delete", "runs/x", "--step", "9", "--yes"], ConfigError, "no checkpoint of step 9"),
    "a fork of a step that is not there": (
        ["fork", "runs/x", "y", "--step", "9"],
        CheckpointError,
        "of step 9; it has",
    ),
    "a fork of all steps": (["fork", "runs/x", "y", "--step", "all"], ConfigError, "a fork stands at one step"),
    "an argument too many": (["fork", "runs/x", "y", "--steps", "all"], SystemExit, "2"),
    "a name that is a path": (["fork", "runs/x", "a/b"], ConfigError, "a run's name is one directory name"),
    "a deleted directory of runs": (["delete", "runs", "--yes"], ConfigError, "runs is no run"),
    "a step that is no number": (["pull", "{url}/x", "--step", "two"], SystemExit, "2"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(case: str, url: str) -> None:
    arguments, error, sentence = BAD_INPUT[case]
    Path("runs/x/checkpoints/step-000001").mkdir(parents=True)
    Path("runs/x/config.yaml").write_text("run: {name: x}\n")
    manifest = {"step": 1, "metadata": {}, "files": {}}
    Path("runs/x/checkpoints/step-000001/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(error, match=sentence):
        main([argument.replace("{url}", url) for argument in arguments])
    assert steps(Path("runs/x")) == [1]


def test_what_is_kept_is_the_newest_and_the_best_and_of_nothing_nothing_is_deleted(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(steps=4)
    with pytest.raises(ConfigError, match="--step and --keep choose differently; give one of them"):
        main(["delete", "runs/x", "--step", "1", "--keep", "2", "--yes"])
    main(["delete", "runs/x", "--keep", "1", "--yes"])
    assert steps(Path("runs/x")) == [2, 4]
    capsys.readouterr()
    main(["delete", "runs/x", "--keep", "1"])  # asks nothing
    assert capsys.readouterr().out == "runs/x has no checkpoint to delete\n"
    main(["list"])
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "checkpoints", "size", "updated"]
    assert line.split()[:6] == ["runs/x", "finished", "4/4", "2", "(best),", "4"]
    assert header.index("state") == line.index("finished")  # columns stand below their titles
