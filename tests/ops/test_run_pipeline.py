"""Pipelines of real processes: order, what is handed over, what is skipped, what stops a chain and how it goes on."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from troupe.config.loader import load_config
from troupe.config.tools import PipelineConfig
from troupe.errors import CheckpointError, ConfigError
from troupe.files import read_json
from troupe.jobs.run_pipeline import check_command, check_stages, checked_stage, missing_files, override, plan
from troupe.ops.dry_runs import dry_runs
from troupe.ops.pipeline import PipelineState
from troupe.ops.pipeline_report import measured_groups
from troupe.processes.subprocesses import run_logged

ROOT = Path(__file__).resolve().parents[2]
# Without torch, which a run would only seed: it takes two seconds to import.
HEAD = (
    f"import sys, time, json, subprocess\nsys.modules['torch'] = None\nfrom pathlib import "
    f"Path\nsys.path.insert(0, {str(ROOT)!r})\n"
)
TRAIN = (
    HEAD
    + '''
from troupe.config.loader import Section
from troupe.errors import DataError
from troupe.config.program import run_program
from troupe.config.run import CheckpointConfig, RunConfig
from troupe.report.observers import open_run

class TrainConfig(Section):
    """A training whose weights are a text: those it began with, and one letter per step."""
    steps: int = 3
    seed: int = 0
    start: str = ""
    letter: str = "a"
    pause_s: float = 0.0
    fail_at: int = 0
    helper: bool = False
    run: RunConfig = RunConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

def train(config):
    with open_run(config) as run:
        latest = run.checkpoints.latest()
        first = latest or 0
        begins = run.checkpoints.path(first) if first else Path(config.start) if config.start else None
        weights = (begins / "weights.txt").read_text() if begins else ""
        if config.helper:
            subprocess.Popen(["sleep", "600"])
        if first:
            run.resume_from(first)
        for step in run.steps(first + 1, config.steps):
            if step == config.fail_at:
                raise DataError(f"step {step} is not to my taste")
            time.sleep(config.pause_s)
            weights += config.letter
            print(f"{config.run.name} step {step}", flush=True)
            run.log({"loss": 1 / step, "eval/heldout/accuracy": 1 - 1 / step})
            with run.checkpoints.writing(step) as path:
                (path / "weights.txt").write_text(weights)
            # The last step is never the best: `best` must not be taken for `latest`.
            run.checkpoints.record_metric(step, float(step if step < config.steps else 0))
            run.end_step(step)

run_program(train, TrainConfig, "train.py")
'''
)
MEASURE = (
    HEAD
    + '''
from troupe.config.loader import Section
from troupe.config.program import run_program

class MeasureConfig(Section):
    """The length of each model's weights."""
    models: dict[str, str] = {}
    output: str = "measured"

def measure(config):
    lengths = {name: len((Path(path) / "weights.txt").read_text()) for name, path in config.models.items()}
    Path(config.output).mkdir(parents=True, exist_ok=True)
    metrics = {name: {"length": {"mean": n, "low": n - 1, "high": n + 1}} for name, n in lengths.items()}
    (Path(config.output) / "metrics.json").write_text(json.dumps({"models": metrics}))

run_program(measure, MeasureConfig, "measure.py")
'''
)
LOOSE = (
    HEAD
    + '''
from troupe.config.loader import Section
from troupe.config.program import run_program

class LooseConfig(Section):
    """A job that does not say where it writes."""
    count: int = 1

run_program(print, LooseConfig, "loose.py")
'''
)
STAGES = {
    "sft": {"job": "train", "set": {"letter": "s"}},
    "dpo": {"job": "train", "set": {"letter": "d"}, "inputs": {"start": "sft"}},
    "evaluate": {"job": "measure", "inputs": {"models.sft": "sft", "models.dpo": "dpo"}},
}


class Pipeline:
    """A pipeline file in a test's directory, and its directory once it ran."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "runs" / "chain"
        jobs = directory / "jobs"
        jobs.mkdir()
        for name, source in {"train": TRAIN, "measure": MEASURE, "loose": LOOSE}.items():
            (jobs / f"{name}.py").write_text(source)
        self.write(STAGES)

    def write(self, stages: dict[str, Any]) -> None:
        content = {
            "name": "chain",
            "directory": str(self.directory / "runs"),
            "jobs": str(self.directory / "jobs"),
            "stages": stages,
        }
        (self.directory / "chain.yaml").write_text(json.dumps(content))  # JSON is YAML

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "jobs/run_pipeline.py", str(self.directory / "chain.yaml"), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)

    def record(self, name: str) -> dict[str, Any]:
        return dict(read_json(self.path / "pipeline.json")["stages"][name])

    def weights(self, name: str) -> str:
        return (Path(self.record(name)["handover"]) / "weights.txt").read_text()

    def printed_plan(self, ran: subprocess.CompletedProcess[str]) -> dict[str, str]:
        """Stage -> what a call said of it before it began."""
        return dict(re.findall(r"^  (\w+) +\w+ +((?:runs|skipped|goes on).*)$", ran.stdout, re.MULTILINE))

    def plan(self, *arguments: str) -> dict[str, str]:
        """Stage -> what a call would say of it."""
        config = load_config(PipelineConfig, [str(self.directory / "chain.yaml"), *arguments])
        decisions = plan(config, check_stages(config), PipelineState(config))
        return {name: decision.in_words() for name, decision in decisions.items()}


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


# -- the chain ---------------------------------------------------------------------------------------------------


def test_later_stages_take_what_earlier_ones_hand_over_and_a_second_call_skips_them_all(pipeline: Pipeline) -> None:
    ran = pipeline.run()
    assert ran.returncode == 0, ran.stderr
    # Three steps, of which the second is the best; dpo begins with sft's best and its own second step is best again.
    assert pipeline.record("sft")["handover"] == str(pipeline.path / "sft" / "checkpoints" / "step-000002")
    assert pipeline.weights("dpo") == "ssdd"
    measured = read_json(pipeline.path / "evaluate" / "metrics.json")["models"]
    assert {name: values["length"]["mean"] for name, values in measured.items()} == {"sft": 2, "dpo": 4}
    # What the stages print is on our console, in order, and each stage's in its log.
    assert ran.stdout.index("sft step 3") < ran.stdout.index("dpo step 1")
    assert "dpo step 3" in (pipeline.path / "dpo.log").read_text()
    assert "sft step" not in (pipeline.path / "dpo.log").read_text()

    before = {name: pipeline.record(name) for name in STAGES}
    again = pipeline.run()
    assert pipeline.printed_plan(again) == dict.fromkeys(STAGES, "skipped: finished before")
    assert {name: pipeline.record(name) for name in STAGES} == before

    page = (pipeline.path / "report.html").read_text()
    assert 'href="sft/report.html"' in page
    assert 'href="evaluate.log"' in page
    assert "4 (3 to 5)" in page  # dpo's length with its interval
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


def test_a_changed_stage_runs_again_with_everything_that_depends_on_it_and_nothing_else(pipeline: Pipeline) -> None:
    stages = {"sft": STAGES["sft"], "other": {"job": "train"}, "dpo": STAGES["dpo"]}
    pipeline.write(stages)
    assert pipeline.run().returncode == 0
    before = pipeline.record("other")
    ran = pipeline.run("stages.sft.set.letter=x")
    assert ran.returncode == 0, ran.stderr
    assert pipeline.printed_plan(ran) == {
        "sft": 'runs again: letter was "s", is "x"',
        "other": "skipped: finished before",
        "dpo": "runs again: sft before it runs",
    }
    assert pipeline.weights("dpo") == "xxdd"
    assert pipeline.record("other") == before
    assert (pipeline.path / "sft.1").is_dir()  # the earlier run is moved aside, not lost
    # Where a run is watched or placed decides no result.
    watched = ["stages.sft.set.letter=x", "stages.dpo.set.run.samples_per_step=9"]
    assert pipeline.plan(*watched) == dict.fromkeys(stages, "skipped: finished before")
    # A result that changed behind our back is another input.
    manifest = Path(pipeline.record("sft")["handover"]) / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert pipeline.plan(*watched)["dpo"] == "runs again: start is another one than before"


def test_force_only_and_until_choose_stages(pipeline: Pipeline) -> None:
    assert set(pipeline.printed_plan(pipeline.run("until=dpo"))) == {"sft", "dpo"}
    assert pipeline.record("evaluate")["state"] == "waiting"
    assert pipeline.plan("only=[evaluate]") == {"evaluate": "runs"}
    assert pipeline.plan("force=[dpo]") == {
        "sft": "skipped: finished before",
        "dpo": "runs again: forced",
        "evaluate": "runs",
    }


def test_only_a_stage_whose_input_was_never_made_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(
        CheckpointError, match="the stage 'sft' has handed nothing over yet \\(it is waiting\\); run it first"
    ):
        pipeline.plan("only=[dpo]")


def test_a_failed_stage_stops_the_chain_says_how_its_log_ends_and_goes_on_where_it_was(pipeline: Pipeline) -> None:
    ran = pipeline.run("stages.dpo.set.fail_at=3")
    assert ran.returncode == 2
    sentence, *tail = ran.stderr.splitlines()
    assert sentence.startswith(
        "error: the stage 'dpo' (train) ended with status 2: step 3 is not to my taste; its log is "
    )
    assert "  | dpo step 2" in tail
    assert tail[-1] == "  | error: step 3 is not to my taste"
    states = {name: pipeline.record(name)["state"] for name in STAGES}
    assert states == {"sft": "finished", "dpo": "failed", "evaluate": "waiting"}
    assert "step 3 is not to my taste" in (pipeline.path / "report.html").read_text()

    # The same recipe goes on from its checkpoint of step 2; and so does one that is only longer.
    assert pipeline.plan("stages.dpo.set.fail_at=3")["dpo"] == "goes on: it failed"
    assert pipeline.plan("stages.dpo.set.fail_at=3", "stages.dpo.set.steps=9")["dpo"] == "goes on: it failed"
    # A recipe that computes something else begins anew.
    ran = pipeline.run()
    assert ran.returncode == 0, ran.stderr
    assert pipeline.printed_plan(ran)["dpo"] == "runs again: fail_at was 3, is 0"
    assert pipeline.weights("dpo") == "ssdd"


def test_the_jobs_accept_the_recipes_of_every_pipeline_that_comes_with_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes are named from the repository
    configs = [load_config(PipelineConfig, [str(file)]) for file in sorted(Path("configs/pipelines").glob("*.yaml"))]
    stages = [(config, name) for config in configs for name in config.stages]
    assert [problem for config, name in stages for problem in missing_files(config, name)] == []
    # All in one process, because the jobs' libraries take seconds to load.
    for (config, name), answer in zip(stages, dry_runs([check_command(*stage) for stage in stages]), strict=True):
        assert checked_stage(config, name, answer).is_run == (config.stages[name].job.startswith("train"))


# -- what is refused before anything runs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        ({"job": "train", "inputs": {"start": "sfft"}}, "inputs: start names the stage 'sfft', which is not there; " "did " "you " "mean " "'sft'?"),
        ({"job": "train", "inputs": {"start": "evaluate"}}, "inputs: start takes 'evaluate', which does not come " "before " "it"),
        ({"job": "train", "inputs": {"start": "dpo"}}, "inputs: start takes 'dpo', which does not come before it"),
        ({"job": "train", "inputs": {"start": 3}}, "stages.dpo.inputs: start must name a stage, `stage/file`, or a " "list of them (got 3)"),
        ({"job": "trane"}, "stages.dpo.job: there is no job 'trane' in "),
        ({"job": "train", "recipe": "no.yaml"}, "stages.dpo.recipe: there is no file 'no.yaml'"),
        ({"job": "train", "set": {"stepz": 3}}, "the stage 'dpo' (train) cannot run: stepz: unknown key; did you " "mean 'steps'?"),
        ({"job": "train", "set": {"run.name": "x"}}, "stages.dpo: run.name is given by the pipeline"),
        ({"job": "loose"}, "the job 'loose' has neither a `run` section nor an `output`"),
        ({"job": "train", "recipes": "a.yaml"}, "stages.dpo.recipes: unknown key; did you mean 'recipe'?"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_stage_is_found_when_the_recipes_are_checked(
    pipeline: Pipeline, stage: dict[str, Any], sentence: str
) -> None:
    pipeline.write({**STAGES, "dpo": stage, "evaluate": {"job": "measure"}})
    with pytest.raises(ConfigError) as refused:
        pipeline.plan()
    assert sentence in str(refused.value)


def test_all_mistakes_are_told_before_the_first_stage_starts(pipeline: Pipeline) -> None:
    ran = pipeline.run("stages.dpo.set.stepz=3", "stages.evaluate.set.modelz=3")
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        "error: the stage 'dpo' (train) cannot run: stepz: unknown key; did you mean 'steps'?",
        "the stage 'evaluate' (measure) cannot run: modelz: unknown key; did you mean 'models'?",
    ]
    assert not pipeline.path.exists()


def test_a_dry_run_prints_command_lines_and_writes_nothing(pipeline: Pipeline) -> None:
    ran = pipeline.run("--dry-run", "stages.sft.set.steps=1")
    assert ran.returncode == 0, ran.stderr
    assert pipeline.printed_plan(ran) == dict.fromkeys(STAGES, "runs")
    (line,) = [line for line in ran.stdout.splitlines() if "run.name=sft" in line]
    assert f"letter=s steps=1 run.directory={pipeline.path} run.name=sft" in line
    assert not pipeline.path.exists()


def test_a_secret_of_the_environment_is_on_no_command_line_and_in_no_file(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTER_TOKEN", "open sesame")
    pipeline.write({"sft": {"job": "train", "set": {"letter": "${oc.env:LETTER_TOKEN}"}}})
    ran = pipeline.run()
    assert ran.returncode == 0, ran.stderr
    assert pipeline.weights("sft") == "open sesame" * 2
    written = [file for file in pipeline.path.rglob("*") if file.is_file() and file.name != "weights.txt"]
    assert [file.name for file in written if "open sesame" in file.read_text()] == []


@pytest.mark.parametrize("value", [3, "3", 1e-5, True, "yes: no", "a.yaml", None, "", "1,2", [1, {"fn": "x"}], "ü = ö"])
def test_a_setting_reaches_the_job_as_it_was_written(value: Any) -> None:
    stages = {"a": {"job": "b"}}
    given = override("stages", {**stages, "a": {"job": "b", "set": {"x": value}}})
    assert load_config(PipelineConfig, ["name=n", given]).stages["a"].set == {"x": value}
    plain = load_config(PipelineConfig, ["name=n", override("stages", stages), override("stages.a.set.x", value)])
    assert plain.stages["a"].set == {"x": value}


# -- processes ---------------------------------------------------------------------------------------------------


def stages_alive(pipeline: Pipeline) -> list[psutil.Process]:
    """The processes that belong to this test's jobs, their helpers included."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(pipeline.directory / "jobs") in line or line == "sleep 600":
            found.append(process)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_stage_finish_its_step_leaves_no_process_and_the_next_call_goes_on(
    pipeline: Pipeline, number: int
) -> None:
    slow = ["stages.sft.set.steps=200", "stages.sft.set.pause_s=0.05", "stages.sft.set.helper=true", "until=sft"]
    process = subprocess.Popen(
        pipeline.command(*slow), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    status = pipeline.path / "sft" / "status.json"
    wait_for(lambda: (read_json(status) or {}).get("step", 0) >= 2)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert printed.count("stopping after this step") == 1
    assert printed.endswith(f"the pipeline goes on with: python jobs/run_pipeline.py {pipeline.path}/pipeline.yaml\n")
    assert stages_alive(pipeline) == []
    assert pipeline.record("sft")["state"] == "stopped"
    stopped_at = read_json(status)["step"]
    assert stopped_at < 200
    shorter = [f"stages.sft.set.steps={stopped_at + 1}", *slow[1:]]
    assert pipeline.plan(*shorter) == {"sft": "goes on: it was stopped"}
    if number == signal.SIGINT:
        ran = pipeline.run(*shorter)
        assert ran.returncode == 0, ran.stderr
        assert re.findall(r"^sft step (\d+)$", ran.stdout, re.MULTILINE) == [str(stopped_at + 1)]
        assert stages_alive(pipeline) == []


def test_a_killed_pipeline_takes_its_stage_with_it_and_goes_on_later(pipeline: Pipeline) -> None:
    slow = ["stages.sft.set.steps=400", "stages.sft.set.pause_s=0.05", "until=sft"]
    process = subprocess.Popen(pipeline.command(*slow), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (read_json(pipeline.path / "sft" / "status.json") or {}).get("step", 0) >= 2)
    process.kill()
    process.wait()
    wait_for(lambda: not stages_alive(pipeline))
    assert pipeline.plan(*slow) == {"sft": "goes on: it was cut off"}


def test_two_processes_do_not_run_the_same_pipeline(pipeline: Pipeline) -> None:
    slow = ["stages.sft.set.steps=400", "stages.sft.set.pause_s=0.05"]
    process = subprocess.Popen(pipeline.command(*slow), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (pipeline.path / "sft" / "status.json").is_file())
        ran = pipeline.run(*slow)
        assert ran.returncode == 2
        assert f"is being written by process {process.pid}" in ran.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def test_the_stages_inherit_what_a_submitted_ray_job_is_told(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = "import os\nfor name in ('RAY_ADDRESS', 'RAY_JOB_CONFIG_JSON_ENV_VAR'):\n    print(name, os.environ[name])\n"
    (pipeline.directory / "jobs" / "measure.py").write_text(
        MEASURE.replace("run_program(measure", f"'--dry-run' in sys.argv or exec({show!r})\nrun_program(measure")
    )
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {}}')
    pipeline.write({"evaluate": {"job": "measure", "set": {"models": {}}}})
    ran = pipeline.run()
    log = (pipeline.path / "evaluate.log").read_text()
    assert ran.returncode == 0, ran.stderr
    assert 'RAY_ADDRESS 10.0.0.1:6379\nRAY_JOB_CONFIG_JSON_ENV_VAR {"metadata": {}}\n' in log


def test_on_a_terminal_a_stage_has_a_terminal_and_its_log_gets_the_last_state_of_each_line(pipeline: Pipeline) -> None:
    bar = (
        "import sys, time\nprint('on a terminal' if sys.stdout.isatty() else 'on a pipe')\n"
        "for i in range(50):\n    print(f'\\r\\x1b[2K\\x1b[1mbar {i}\\x1b[0m', end='', flush=True)\nprint()\n"
    )
    (pipeline.directory / "jobs" / "measure.py").write_text(
        MEASURE.replace("run_program(measure", f"'--dry-run' in sys.argv or exec({bar!r})\nrun_program(measure")
    )
    pipeline.write({"evaluate": {"job": "measure"}})
    ours, theirs = pty.openpty()
    process = subprocess.Popen(pipeline.command(), cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert b"\x1b[1mbar 7\x1b[0m" in shown
    assert (pipeline.path / "evaluate.log").read_text().splitlines()[1:] == ["on a terminal", "bar 49"]


def test_a_process_that_a_child_leaves_behind_is_ended_and_not_waited_for(tmp_path: Path) -> None:
    source = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    ended = run_logged([sys.executable, "-c", source], tmp_path / "child.log")
    assert ended.status == 0
    (pid,) = ended.tail
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_measurements_are_found_however_a_metrics_file_nests_them() -> None:
    leaf = {"mean": 0.5, "low": 0.4, "high": 0.6}
    assert measured_groups({"model": "x", "samples": 3, "rouge": leaf}) == {(): {"samples": 3, "rouge": leaf}}
    assert measured_groups({"models": {"sft": {"rouge": leaf}}, "comparisons": {"dpo": {"win": leaf}}}) == {
        ("models", "sft"): {"rouge": leaf},
        ("comparisons", "dpo"): {"win": leaf},
    }
