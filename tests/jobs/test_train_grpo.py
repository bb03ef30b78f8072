"""The main job: what a run leaves behind, that it can be stopped and continued, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.actors.small import write_model
from tests.s3 import client
from tests.test_grafana import unknown_names
from tests.traces import assert_nested_and_covering
from troupe.actors.placement import Cluster
from troupe.algorithms.kl_coefficient import KLCoefficient
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import dump_config
from troupe.config.program import run_program
from troupe.errors import CheckpointError
from troupe.files import read_lines
from troupe.jobs.train_grpo import resume, train
from troupe.report.observers import open_run
from troupe.runs.checkpoint import CheckpointStore, save_state

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("cluster")

STEPS = 4
MARK = "TROUPE_TEST_MARK"
"""Set for the job under test; every process it starts inherits it."""


def recipe(directory: Path, name: str, storage: dict[str, str] | None = None) -> GRPOConfig:
    return GRPOConfig(
        steps=STEPS,
        run={"name": name, "directory": str(directory), "storage": storage or {}},
        model={"type": "pretrained", "path": str(directory / "model")},
        data={"type": "word_problems", "num_train": 100, "num_heldout": 8},
        rewards=[{"fn": "tests.light_rewards:unhurried_variety", "name": "variety"}],
        rollout={"prompts_per_step": 4, "group_size": 4, "max_prompt_tokens": 100, "max_response_tokens": 12},
        algorithm={
            "minibatches": 2,
            "kl": {"coef": 0.05, "estimator": "k3", "placement": "loss"},
            "old_logprobs": "recompute",
            "importance": {"type": "truncate", "high": 2.0},
        },
        policy={"precision": "fp32", "learning_rate": 1e-3},
        generator={"cpu_cache_gib": 0.1},
        evaluation={"every": 2, "metrics": [{"fn": "tests.light_rewards:variety"}]},
        checkpoint={"every": 1, "keep_last": 2},
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file lie, and the model that they start from."""
    path = tmp_path_factory.mktemp("runs")
    write_model(path / "model", tied=True)
    return path


@pytest.fixture(scope="module")
def uninterrupted(directory: Path) -> Path:
    """The directory of a run of four steps in one go."""
    train(recipe(directory, "whole"))
    return directory / "whole"


def weights(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def test_a_run_leaves_every_file_that_its_reader_expects(uninterrupted: Path) -> None:
    files = {path.name for path in uninterrupted.iterdir()}
    told = {"config.yaml", "environment.json", "status.json", "placement.json", "report.html", "checkpoints"}
    assert files >= told | {f"{name}.jsonl" for name in ("metrics", "rollouts", "answers", "events")}
    assert json.loads((uninterrupted / "status.json").read_text())["state"] == "finished"
    assert "eval/word_problems/variety" in (uninterrupted / "report.html").read_text()
    roles = {row["role"] for row in json.loads((uninterrupted / "placement.json").read_text())}
    assert roles == {"policy", "generator", "reference"}


def test_metrics_have_a_line_for_every_step_and_for_the_state_before(uninterrupted: Path) -> None:
    lines = read_lines(uninterrupted / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval/word_problems/variety" in line] == [0, 2, 4]
    assert all(line["consistency/logprob_gap"] < 1e-4 for line in lines)
    for line in lines[1:]:
        # Trainer and sampler are both fp32: their ratio is 1 up to rounding, and so nothing is truncated.
        assert line["importance/ratio_mean"] == pytest.approx(1.0, abs=1e-4)
        assert line["importance/truncated_fraction"] == 0
        assert line["rollout/lag_max"] == 0
        assert line["policy/grad_norm"] > 0
    # The reference is the starting model: no divergence before the first update, some at the end.
    assert lines[-1]["policy/kl"] > 1e-6


def test_tokens_per_second_counts_all_tokens_of_the_time_that_it_counts(uninterrupted: Path) -> None:
    lines = read_lines(uninterrupted / "metrics.jsonl")
    seconds = 0.0
    for before, line in itertools.pairwise(lines):
        evaluated = 8 * before.get("eval/word_problems/response_tokens", 0) if before["step"] else 0
        seconds += (line["rollout/tokens"] + evaluated) / line["tokens_per_second"]
    # The steps from the first one's begin to the last one's evaluation, each second once.
    counted = sum(line["time/step_s"] for line in lines[1:]) - lines[-1]["time/evaluate_s"]
    assert seconds == pytest.approx(counted, rel=0.02, abs=0.3)


def test_the_timeline_has_every_worker_and_the_dashboard_finds_its_metrics(uninterrupted: Path) -> None:
    trace = json.loads((uninterrupted / "timeline.json").read_text())
    assert set(trace["tracks"]) >= {"driver", "policy 0", "generator 0", "reference 0", "rewarder"}
    did = {
        (trace["tracks"][event["pid"]], event["name"])
        for event in trace["traceEvents"]
        if event["ph"] == "X" and event["step"] == 1
    }
    assert did >= {
        ("policy 0", "update"),
        ("policy 0", "optimizer step"),
        ("policy 0", "publish"),
        ("policy 0", "sync: transfer"),
        ("generator 0", "generate"),
        ("generator 0", "receive weights"),
        ("reference 0", "read"),
        ("rewarder", "judgements"),
        ("driver", "rollout"),
    }
    assert_nested_and_covering(uninterrupted)
    assert (
        unknown_names({"step", *(name for line in read_lines(uninterrupted / "metrics.jsonl") for name in line)}) == []
    )


def test_what_workers_and_the_driver_recorded_reaches_rays_agent_under_the_name_of_the_run(
    uninterrupted: Path, cluster: Cluster
) -> None:
    wanted = {"ray_troupe_generator_tokens_total", "ray_troupe_rewarder_judgements_total"}
    (address,) = cluster.metrics_addresses()

    def arrived() -> bool:
        shown = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode().splitlines()
        return {line.split("{")[0] for line in shown if f'run="{uninterrupted.name}"' in line} >= wanted

    assert wait_until(arrived, 30)
    assert not (uninterrupted / "prometheus.json").exists()  # its run has ended


def test_checkpoints_are_the_newest_two_and_the_best_and_load_as_models(uninterrupted: Path, directory: Path) -> None:
    store = CheckpointStore(uninterrupted / "checkpoints")
    measured = {
        line["step"]: line.get("eval/word_problems/variety") for line in read_lines(uninterrupted / "metrics.jsonl")
    }
    best = max((2, 4), key=lambda step: (measured[step], -step))
    assert store.best() == best
    assert store.steps() == sorted({3, 4, best})
    store.verify(4, hashes=True)
    path = uninterrupted / "checkpoints" / "latest"
    model = AutoModelForCausalLM.from_pretrained(path)
    assert len(AutoTokenizer.from_pretrained(path)) == model.config.vocab_size
    started = AutoModelForCausalLM.from_pretrained(directory / "model")
    moved = [(a - b).abs().max().item() for a, b in zip(model.parameters(), started.parameters(), strict=True)]
    assert all(0 < distance < 0.1 for distance in moved)


# -- stopping and going on -------------------------------------------------------------------------------------


@pytest.fixture
def marked_job(directory: Path) -> Iterator[Callable[[GRPOConfig], subprocess.Popen]]:
    """Starts jobs/train_grpo.py in a process group of its own, as a terminal does; ends what is left of it."""
    started: list[subprocess.Popen] = []

    def start(config: GRPOConfig) -> subprocess.Popen:
        file = directory / f"{config.run.name}.yaml"
        file.write_text(dump_config(config))
        with open(directory / f"{config.run.name}.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "jobs/train_grpo.py", str(file)],
                cwd=ROOT,
                env={**os.environ, MARK: str(directory)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
    for pid in marked_processes(directory):
        os.kill(pid, signal.SIGKILL)


def marked_processes(directory: Path) -> dict[int, str]:
    """The processes that the marked job started and that still run: pid -> command line."""
    mark = f"{MARK}={directory}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float, process: subprocess.Popen | None = None) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process is not None and process.poll() is not None:
            return False
        time.sleep(0.02)
    return False


def test_ctrl_c_saves_and_leaves_no_process_and_the_run_continues_from_the_store_to_the_same_weights(
    uninterrupted: Path,
    directory: Path,
    marked_job: Callable[[GRPOConfig], subprocess.Popen],
    s3: str,
    credentials: None,
) -> None:
    client(s3).create_bucket(Bucket="trained")
    config = recipe(directory, "stopped", {"url": "s3://trained/runs", "endpoint_url": s3})
    run = directory / "stopped"
    process = marked_job(config)

    def said() -> str:
        return (directory / "stopped.log").read_text()[-3000:]

    def second_step_is_done() -> bool:
        return any(line["step"] == 2 for line in read_lines(run / "metrics.jsonl"))

    assert wait_until(second_step_is_done, 600, process), said()
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the job and to whatever shares its group
    assert process.wait(300) == 130, said()
    assert "Traceback" not in said()
    assert re.search(r"interrupted: .*/stopped is (saved at step|at its end)", said())
    assert wait_until(lambda: not marked_processes(directory), 60), marked_processes(directory)

    store = CheckpointStore(run / "checkpoints")
    stopped_at = store.latest()
    # The step that ran when the signal came is finished; a step that had been promised is made too.
    assert stopped_at in (3, 4)
    assert json.loads((run / "status.json").read_text())["state"] == ("stopped" if stopped_at < STEPS else "finished")

    # Another machine: nothing of the run is there but what was backed up, before and after the signal.
    told = read_lines(run / "events.jsonl")
    assert [event for event in told if event["kind"].startswith("backup")] == []
    shutil.rmtree(run)
    train(config)
    assert "resumed" in [event["kind"] for event in read_lines(run / "events.jsonl")]
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    expected = read_lines(uninterrupted / "metrics.jsonl")
    # No tolerance: whatever else ran on this machine, and wherever the run was stopped, each bit is the same.
    ours, theirs = weights(run), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    # What is logged of a step depends on nothing else either, save for clocks.
    for own, other in zip(lines[1:], expected[1:], strict=True):
        kinds = ("policy/", "rollout/", "reward/", "importance/")
        numbers = [name for name in other if name.startswith(kinds) and not name.endswith("tokens_per_second")]
        assert [own.get(name) for name in numbers] == [other[name] for name in numbers]


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path: Path) -> dict[str, bytes]:
    """A run directory `x` with a past; its files and their contents."""
    run = tmp_path / "runs" / "x"
    store = CheckpointStore(run / "checkpoints")
    with store.writing(7, {"model": "qwen2-of-another-shape"}) as path:
        (path / "model.safetensors").write_bytes(b"weights")
        save_state(path, {"step": 7, "position": 28})
    for name in ("metrics", "rollouts", "answers"):
        (run / f"{name}.jsonl").write_text('{"step": 7}\n')
    return contents(run)


def contents(run: Path) -> dict[str, bytes]:
    """What a run has achieved: its lines and checkpoints, without what it says of its state."""
    kept = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    own = {"status.json", "events.jsonl", "report.html", "config.yaml", "environment.json"}
    return {str(path.relative_to(run)): path.read_bytes() for path in kept if path.name not in own}


BAD_INPUT = {
    "an unknown key": (["rollout.groupsize=4"], "rollout.groupsize: unknown key; did you mean 'group_size'?"),
    "a bad value": (["steps=many"], "steps: a whole number is needed"),
    "minibatches that do not fit": (
        ["algorithm.minibatches=65"],
        "algorithm.minibatches (65) must be at most rollout.prompts_per_step (64)",
    ),
    "RLOO with one answer": (
        ["algorithm.advantage=rloo", "rollout.group_size=1"],
        "algorithm.advantage 'rloo' compares answers of one prompt and needs rollout.group_size >= 2 (got 1)",
    ),
    "a reference without its trunk": (
        ["algorithm.kl.coef=0.1", "reference.source=shared_trunk"],
        "reference.source shared_trunk needs policy.frozen_layers above 0 and no policy.lora; set the former",
    ),
    "top_p of greedy answers": (["evaluation.top_p=0.9"], "top_p and top_k say nothing about greedy answers"),
    "a missing recipe": (["{tmp}/none.yaml"], "there is no recipe file"),
    "a missing file": (["data={{type: jsonl, path: {tmp}/none.jsonl}}"], "none.jsonl"),
    "an empty file": (["data={{type: jsonl, path: {tmp}/empty.jsonl}}"], "empty.jsonl is empty"),
    "a missing field": (
        ["data={{type: jsonl, path: {tmp}/rows.jsonl, prompt_field: question}}"],
        "rows.jsonl line 1: field 'question' is missing; the line has prompt",
    ),
    "too few lines": (["data={{type: jsonl, path: {tmp}/rows.jsonl}}"], "too few different ones to hold out"),
    "a reward that cannot be imported": (["rewards=[{{fn: 'no_such_judge:score'}}]"], "no_such_judge"),
    "a reward that is not there": (["rewards=[{{fn: math_anser}}]"], "unknown reward 'math_anser'"),
    "a metric that is not there": (["evaluation.metrics=[{{fn: math_anser}}]"], "unknown reward 'math_anser'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_status_2_before_anything_starts(
    case: str,
    tmp_path: Path,
    earlier: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, sentence = BAD_INPUT[case]
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "3+5?"}\n')

    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray must not be started for this")

    monkeypatch.setattr("troupe.actors.placement._connect", started)
    given = [argument.replace("{tmp}", str(tmp_path)).replace("{{", "{").replace("}}", "}") for argument in arguments]
    run = [f"run.directory={tmp_path / 'runs'}", "run.name=x"]
    monkeypatch.setattr(sys, "argv", ["jobs/train_grpo.py", *given, *run])
    with pytest.raises(SystemExit) as ended:
        run_program(train, GRPOConfig, "jobs/train_grpo.py")
    assert ended.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert sentence in told[0]
    assert contents(tmp_path / "runs" / "x") == earlier


def test_the_job_says_it_on_the_command_line_too(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/train_grpo.py", "step=2", f"run.directory={tmp_path}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 2
    assert ran.stderr == "error: step: unknown key; did you mean 'steps'?\n"
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused_before_it_is_loaded(
    tmp_path: Path, earlier: dict[str, bytes]
) -> None:
    def load(directory: str) -> None:
        raise AssertionError("weights of another model must not reach the policy, nor be read for their digests")

    policy = SimpleNamespace(facts={"identity": "qwen2-of-this-shape"}, load=load, damage=load)
    roles = SimpleNamespace(policy=policy)
    config = GRPOConfig(run={"name": "x", "directory": str(tmp_path / "runs")})
    with (
        pytest.raises(
            CheckpointError, match="holds the model qwen2-of-another-shape, this run trains qwen2-of-this-shape"
        ),
        open_run(config) as run,
    ):
        resume(config, run, roles, KLCoefficient(config.algorithm.kl))  # type: ignore[arg-type]
    assert contents(tmp_path / "runs" / "x") == earlier
