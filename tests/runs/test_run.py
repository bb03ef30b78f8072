"""A run directory tells the truth, whatever happened to the run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.rollout import RewardConfig
from troupe.config.supervised import DPOConfig, SFTConfig
from troupe.errors import ConfigError, RewardError, WorkerError
from troupe.files import read_json, read_lines
from troupe.processes.stopping import Interrupted
from troupe.records import Branch, Group, Sample, Score
from troupe.report.observers import open_run
from troupe.runs.run import Run
from troupe.runs.run_records import answer_row


def train(config: GRPOConfig, *, first: int = 1, last: int | None = None, die_in: int | None = None) -> Path:
    """A job in small: step 0, then the steps, a checkpoint after each; it raises in step `die_in`."""
    with open_run(config) as run:
        latest = run.checkpoints.latest()
        if latest is not None:
            run.resume_from(latest)
            first = latest + 1
        else:
            run.end_step(0)
        for step in run.steps(first, last or config.steps):
            with run.timed("update"):
                run.log({"reward/mean": step / 10})
            run.log_rollouts(step, [group()], limit=1)
            if step == die_in:
                raise RuntimeError("out of memory\nsecond line")
            run.end_step(step)
            with run.checkpoints.writing(step):
                pass
    return run.directory


def group(sample_id: str = "toy/1") -> Group:
    sample = Sample(sample_id=sample_id, prompt=[{"role": "user", "content": "2+2?"}], gold="4")
    branches = [Branch(token_ids=[1, 2], text="4"), Branch(token_ids=[3], text="5", finish_reason="length")]
    scores = [Score(value=1.0, parts={"math_answer": 1.0}), Score(value=None)]
    return Group(sample=sample, prompt_ids=[7], branches=branches).with_scores(scores)


@contextlib.contextmanager
def interrupted(config: GRPOConfig) -> Iterator[tuple[Run, list[Interrupted]]]:
    """A run that a signal ends inside the block, and, after it, the interruption that says so."""
    raised: list[Interrupted] = []
    try:
        with open_run(config) as run:
            yield run, raised
    except Interrupted as error:
        raised.append(error)
    assert raised


def steps_in(directory: Path, name: str = "metrics.jsonl") -> list[int]:
    return [line["step"] for line in read_lines(directory / name)]


def kinds(directory: Path) -> list[str]:
    return [event["kind"] for event in read_lines(directory / "events.jsonl")]


def test_a_run_leaves_recipe_metrics_environment_status_and_report(recipe) -> None:
    directory = train(recipe())
    assert load_config(GRPOConfig, [str(directory / "config.yaml")]) == recipe()
    assert steps_in(directory) == [0, 1, 2, 3]
    assert read_json(directory / "status.json")["state"] == "finished"
    assert {"python", "packages", "code", "platform", "cores", "memory_gib"} <= set(
        read_json(directory / "environment.json")
    )
    assert (directory / "report.html").stat().st_size > 1000
    assert kinds(directory) == ["opened", "finished"]
    assert list(directory.parent.glob(".*.lock")) == []


def test_a_step_is_one_line_with_its_metrics_and_the_times_that_add_up(recipe) -> None:
    line = read_lines(train(recipe()) / "metrics.jsonl")[2]
    assert (line["step"], line["reward/mean"]) == (2, 0.2)
    # The clock is read once for the end of the step, so only rounding of the sum remains.
    assert line["time/update_s"] + line["time/other_s"] == pytest.approx(line["time/step_s"], abs=1e-9)


def test_a_metric_that_is_not_a_number_is_null_and_one_that_is_not_numeric_is_refused(recipe) -> None:
    with open_run(recipe()) as run:
        run.log({"policy/kl": math.nan, "policy/loss": math.inf})
        run.end_step(0)
        with pytest.raises(ValueError, match="could not convert"):
            run.log({"reward/mean": "high"})
    assert '"policy/kl": null, "policy/loss": null' in (run.directory / "metrics.jsonl").read_text()


def test_a_run_that_died_and_was_resumed_has_one_line_per_step_and_keeps_its_wall_time(recipe) -> None:
    with pytest.raises(RuntimeError):
        train(recipe(), die_in=3)
    directory = recipe().run.path
    # Died in step 3: the rollouts of step 3 were written, its metrics were not.
    assert (steps_in(directory), steps_in(directory, "rollouts.jsonl")) == ([0, 1, 2], [1, 2, 3])
    before = read_lines(directory / "metrics.jsonl")[-1]["wall_s"]
    train(recipe(steps=5))
    assert steps_in(directory) == [0, 1, 2, 3, 4, 5]
    assert steps_in(directory, "rollouts.jsonl") == [1, 2, 3, 4, 5]
    assert read_lines(directory / "metrics.jsonl")[-1]["wall_s"] > before
    assert kinds(directory) == ["opened", "failed", "opened", "resumed", "finished"]


def test_without_a_checkpoint_a_second_attempt_begins_with_clean_files(recipe) -> None:
    for _ in range(2):
        with open_run(recipe()) as run:
            run.log_answers(0, "heldout", [answer_row(group())])
            run.end_step(0)
    assert steps_in(run.directory) == [0]
    assert steps_in(run.directory, "answers.jsonl") == [0]


def test_an_exception_is_told_by_its_first_line_and_the_directory_stays_whole(recipe) -> None:
    with pytest.raises(RuntimeError):
        train(recipe(), die_in=2)
    directory = recipe().run.path
    failed = read_lines(directory / "events.jsonl")[-1]
    assert (failed["kind"], failed["step"], failed["error"]) == ("failed", 2, "RuntimeError: out of memory")
    assert "in train" in failed["traceback"]
    assert read_json(directory / "status.json")["state"] == "failed"
    assert "RuntimeError: out of memory" in (directory / "report.html").read_text()


def test_a_run_that_fails_before_its_first_step_has_a_report_too(recipe) -> None:
    with pytest.raises(RewardError), open_run(recipe()):
        raise RewardError("reward math_answer raised on toy/1")
    assert "reward math_answer raised on toy/1" in (recipe().run.path / "report.html").read_text()


def test_another_recipe_is_refused_by_naming_keys_values_and_remedy(recipe) -> None:
    directory = train(recipe(seed=1))
    with pytest.raises(ConfigError) as error:
        train(recipe(seed=2, rollout={"group_size": 4}))
    told = str(error.value)
    assert "seed: 1 in the run, 2 now" in told
    assert "rollout.group_size: 8 in the run, 4 now" in told
    assert "run.resume=never" in told
    assert load_config(GRPOConfig, [str(directory / "config.yaml")]).seed == 1


def test_how_long_where_and_how_fast_may_change_and_one_line_has_it_all(recipe, caplog) -> None:
    directory = train(recipe())
    caplog.set_level("INFO")
    changed = {
        "steps": 4,
        "checkpoint": {"every": 1},
        "generator": {"num_engines": 2},
        "policy": {"num_ranks": 2, "zero_stage": 1, "learning_rate": 1e-5},
        "rollout": {"prompts_per_step": 32},
    }
    train(recipe(**changed))
    assert load_config(GRPOConfig, [str(directory / "config.yaml")]).steps == 4
    lines = [record.getMessage() for record in caplog.records if " goes on with " in record.getMessage()]
    settings = [
        "checkpoint.every 20 -> 1", "generator.num_engines 1 -> 2",
        "policy.learning_rate 0.0001 -> 1e-05", "policy.num_ranks 1 -> 2", "policy.zero_stage 3 -> 1",
        "rollout.prompts_per_step 64 -> 32", "steps 3 -> 4",
    ]  # fmt: skip
    assert lines == [f"{directory} goes on with {', '.join(settings)}"]
    opened = [event["changed"] for event in read_lines(directory / "events.jsonl") if event["kind"] == "opened"]
    assert opened == [[], settings]


@pytest.mark.parametrize(
    ("config", "fields", "reason"),
    [
        (SFTConfig, {"steps": None}, r"\(a run counted in epochs would end elsewhere: set steps\)"),
        (DPOConfig, {"steps": 9}, r"\(the cached reference covers the samples of batches of that size\)"),
        (SFTConfig, {"steps": 9}, None),
        (DPOConfig, {"steps": 9, "reference": "adapter_off", "engine": {"lora": {"rank": 4}}}, None),
    ],
)
def test_the_size_of_a_batch_may_change_where_the_run_ends_at_the_same_place(
    tmp_path: Path, config: type[Any], fields: dict[str, Any], reason: str | None
) -> None:
    run = {"name": "supervised", "directory": str(tmp_path)}
    for size in (64, 32):
        expected = pytest.raises(ConfigError, match=f"batch_size: 64 in the run, 32 now {reason}")
        refused = reason is not None and size == 32
        with expected if refused else contextlib.nullcontext(), open_run(config(**fields, run=run, batch_size=size)):
            pass


def test_never_moves_the_old_run_aside_and_deletes_nothing(recipe) -> None:
    directory = train(recipe(seed=1))
    for seed in (2, 3):
        train(recipe(seed=seed, resume="never"))
    seeds = [
        load_config(GRPOConfig, [str(directory.with_name(name) / "config.yaml")]).seed
        for name in ("tiny.1", "tiny.2", "tiny")
    ]
    assert seeds == [1, 2, 3]


def test_must_refuses_to_start_anew(recipe) -> None:
    with pytest.raises(ConfigError, match=r"run\.resume is must, but .* holds no complete checkpoint"):
        train(recipe(resume="must"))
    train(recipe())
    train(recipe(resume="must", steps=4))


HOLDER = """
import sys
from pathlib import Path
from troupe.runs.run_directory import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_write_one_run_and_a_dead_ones_lock_is_taken_over(recipe, start_python) -> None:
    config = recipe()
    holder = start_python(HOLDER, str(config.run.path))
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"is being written by process {holder.pid} on .* since"):
        train(config)
    with pytest.raises(ConfigError, match="is being written"):
        train(recipe(resume="never"))
    holder.kill()
    holder.wait(timeout=10)
    assert (config.run.path.parent / ".tiny.lock").exists()
    train(config)


def test_ctrl_c_finishes_the_step_and_a_stopped_run_continues(recipe) -> None:
    handler = signal.getsignal(signal.SIGINT)
    saved = []
    with interrupted(recipe(steps=9)) as (run, raised):
        for step in run.steps(1, 9):
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                assert run.stop_requested
            if run.is_last(step):
                saved.append(step)
                with run.checkpoints.writing(step):
                    pass
            run.end_step(step)
    assert raised[0].status == 130  # ended early and saved is still an interruption
    assert (
        str(raised[0])
        == f"{run.directory} is saved at step 2; it goes on with: a call with run.name={run.directory.name}"
    )
    assert (steps_in(run.directory), saved) == ([1, 2], [2])
    assert read_json(run.directory / "status.json")["state"] == "stopped"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_stop_after_is_last_said_no_waits_for_the_next_step_so_that_it_is_saved(recipe) -> None:
    last_ones = []
    with interrupted(recipe(steps=9)) as (run, raised):
        for step in run.steps(1, 9):
            if run.is_last(step):
                last_ones.append(step)
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            run.end_step(step)
    assert (steps_in(run.directory), last_ones) == ([1, 2, 3], [3])
    assert (raised[0].status, str(raised[0])) == (
        143,
        f"{run.directory} has no checkpoint yet; it begins again with: a call with run.name={run.directory.name}",
    )


def test_a_second_ctrl_c_ends_the_run_at_once(recipe) -> None:
    def impatient() -> None:
        with open_run(recipe()) as run:
            for _ in run.steps(1, 3):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert read_json(recipe().run.path / "status.json")["state"] == "stopped"


def test_one_ctrl_c_before_the_first_step_ends_the_run_because_there_is_no_step_to_finish(recipe) -> None:
    def impatient() -> None:
        with open_run(recipe()):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert read_json(recipe().run.path / "status.json")["state"] == "stopped"


def test_a_signal_that_a_library_took_is_taken_back_when_the_steps_begin(recipe) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupted(recipe()) as (run, _):
        signal.signal(signal.SIGTERM, lambda number, frame: pytest.fail("the library's handler"))  # as ray.init does
        for step in run.steps(1, 3):
            os.kill(os.getpid(), signal.SIGTERM)
            run.end_step(step)
    assert steps_in(run.directory) == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_rollouts_are_sampled_groups_with_texts_scores_and_parts(recipe) -> None:
    with open_run(recipe()) as run:
        run.log_rollouts(1, [group(f"toy/{index}") for index in range(5)], limit=2)
    lines = read_lines(run.directory / "rollouts.jsonl")
    assert len(lines) == 2
    assert lines[0]["prompt"] == "user: 2+2?"
    assert lines[0]["branches"] == [
        {"text": "4", "score": 1.0, "parts": {"math_answer": 1.0}, "finish_reason": "stop", "num_tokens": 2},
        {"text": "5", "score": None, "parts": {}, "finish_reason": "length", "num_tokens": 1},
    ]


def test_answers_are_of_the_same_samples_at_every_step_in_whatever_order_they_finish(recipe) -> None:
    rows = [answer_row(group(f"toy/{index}")) for index in range(30)]
    with open_run(recipe()) as run:
        run.log_answers(0, "heldout", rows, limit=4)
        run.log_answers(9, "heldout", rows[::-1], limit=4)
    lines = read_lines(run.directory / "answers.jsonl")
    first, last = ([line["sample_id"] for line in lines if line["step"] == step] for step in (0, 9))
    assert first == last
    assert len(set(first)) == 4


def test_the_same_seed_gives_the_same_numbers_in_the_run(recipe) -> None:
    import random

    import numpy

    drawn = []
    for _ in range(2):
        with open_run(recipe(seed=5)):
            drawn.append((random.random(), numpy.random.rand()))
    assert drawn[0] == drawn[1]


def test_a_job_log_gets_few_lines_and_the_last_step(recipe, capsys) -> None:
    train(recipe(steps=30))
    lines = capsys.readouterr().out.splitlines()
    # The steps take well under five seconds: the first line, and the one of the last step.
    assert len(lines) == 2
    assert lines[-1].startswith("tiny  step 30/30  reward 3.000")


def test_no_file_of_a_run_holds_a_secret_of_the_environment(recipe, monkeypatch, tmp_path: Path) -> None:
    key = "sk-5f1c9a7be2d04c66"
    monkeypatch.setenv("JUDGE_API_KEY", key)
    config = recipe(rewards=[RewardConfig(fn="length", args={"url": f"https://judge?key={key}"})])

    def refused() -> None:
        with open_run(config) as run:
            run.event("retry", reason=f"GET https://judge?key={key} failed")
            raise RewardError(f"the judge refused {key}")

    with pytest.raises(RewardError):
        refused()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert [path.name for path in files if key in path.read_text()] == []
    assert load_config(GRPOConfig, [str(config.run.path / "config.yaml")]) == config
    assert json.loads((config.run.path / "status.json").read_text())["state"] == "failed"


class Watching:
    """An observer that fails at one step."""

    def __init__(self, name: str, *, fails_at: int | str | None = None) -> None:
        self.name, self._fails_at = name, fails_at
        self.seen: list[int | str] = []

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._see(step)

    def on_close(self, state: str) -> None:
        self._see(state)

    def _see(self, what: int | str) -> None:
        self.seen.append(what)
        if what == self._fails_at:
            raise ConnectionError("the tracker is away\nfor long")


def test_an_observer_that_fails_gets_nothing_more_and_costs_neither_the_run_nor_the_others(
    recipe, caplog: pytest.LogCaptureFixture
) -> None:
    away, there, late = Watching("away", fails_at=1), Watching("there"), Watching("late", fails_at="finished")
    with Run.open(recipe(), lambda run: [away, there]) as run:
        run.observe(late)
        for step in (0, 1, 2):
            run.end_step(step)
    assert (away.seen, there.seen, late.seen) == ([0, 1], [0, 1, 2, "finished"], [0, 1, 2, "finished"])
    assert steps_in(run.directory) == [0, 1, 2]
    failed = [event for event in read_lines(run.directory / "events.jsonl") if event["kind"] == "tracker_failed"]
    assert [(event["tracker"], event["error"]) for event in failed] == [
        ("away", "ConnectionError: the tracker is away"),
        ("late", "ConnectionError: the tracker is away"),
    ]
    assert "away failed and gets nothing more" in caplog.text


def test_groups_are_drawn_by_the_step_and_the_same_ones_again(recipe) -> None:
    def drawn(name: str) -> list[list[str]]:
        with open_run(recipe(name=name)) as run:
            for step in (1, 2, 3):
                run.log_rollouts(step, [group(f"toy/{index}") for index in range(50)], limit=4)
            run.log_rollouts(4, [group("toy/only")], limit=4)
        lines = read_lines(run.directory / "rollouts.jsonl")
        return [[line["sample_id"] for line in lines if line["step"] == step] for step in (1, 2, 3, 4)]

    one, two, three, few = drawn("first")
    assert [one, two, three, few] == drawn("again")
    assert [len(set(ids)) for ids in (one, two, three)] == [4, 4, 4]
    assert one != two != three
    assert few == ["toy/only"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_learned_again_is_logged_once(recipe, fails: bool) -> None:
    with open_run(recipe()) as run:
        run.log({"eval/heldout/accuracy": 0.5})
        with pytest.raises(WorkerError) if fails else contextlib.nullcontext(), run.replaying(2, 4):
            run.log({"reward/mean": 0.9, "eval/heldout/accuracy": 0.1})
            if fails:
                raise WorkerError("policy rank 1 died")
        run.end_step(4)
    (line,) = read_lines(run.directory / "metrics.jsonl")
    assert (line["eval/heldout/accuracy"], "reward/mean" in line) == (0.5, False)
    assert line["time/replay_s"] >= 0
    assert [
        (event["first"], event["last"]) for event in read_lines(run.directory / "events.jsonl") if "first" in event
    ] == [(2, 4)]


def test_where_the_end_cannot_be_written_the_error_that_ended_the_run_is_told(
    recipe, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        with open_run(recipe()) as run:
            (run.directory / "status.json").unlink()
            (run.directory / "status.json").mkdir()  # stands for a disk that takes no more
            raise WorkerError("policy rank 1 died")

    with pytest.raises(WorkerError, match="policy rank 1 died"):
        broken()
    assert "the end of the run cannot be written" in caplog.text


def test_advice_is_a_command_that_can_be_typed(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(ROOT / "jobs" / "train_grpo.py"), "steps=3"])
    directory = train(recipe(steps=3))
    with open_run(recipe(steps=4)) as run:
        run.resume_from(3)
        assert run._advice() == (
            f"{directory} is saved at step 3; it goes on with: python {ROOT}/jobs/train_grpo.py {directory}/config.yaml"
        )
    with open_run(recipe(steps=3)) as run:
        run.resume_from(3)
        assert run._advice() == f"{directory} is at its end, step 3"
    with open_run(recipe(name="new", resume="never")) as run:
        assert run._advice().endswith("/new/config.yaml run.resume=auto")  # or it would begin again


# -- a worker died, and the roles start again in the same process --------------------------------------------------


def lived_through_a_death(config: GRPOConfig, *, dies_in: int, checkpoint_at: int | None) -> Run:
    """A job whose worker dies once in step `dies_in`, with everything but the last line of that step written."""
    with open_run(config) as run:
        alive = False
        while not alive:
            latest = run.checkpoints.latest()
            if latest is None:
                run.log({"eval/heldout/accuracy": 0.5})
                run.log_answers(0, "heldout", [answer_row(group())])
                run.end_step(0)
            else:
                run.resume_from(latest)
            try:
                for step in run.steps((latest or 0) + 1, config.steps):
                    run.log({f"from_{latest}": step})
                    run.log_rollouts(step, [group()], limit=1)
                    if step == dies_in and latest in (None, checkpoint_at) and "restarted" not in kinds(run.directory):
                        raise WorkerError("policy rank 1 died")
                    run.end_step(step)
                    if step == checkpoint_at:
                        with run.checkpoints.writing(step):
                            pass
                alive = True
            except WorkerError as error:
                run.start_again(error)
    return run


@pytest.mark.parametrize("checkpoint_at", [None, 2])
def test_after_a_restart_there_is_one_line_per_step_and_none_of_the_lost_attempt(recipe, checkpoint_at) -> None:
    directory = lived_through_a_death(recipe(steps=5), dies_in=4, checkpoint_at=checkpoint_at).directory
    lines = read_lines(directory / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert steps_in(directory, "rollouts.jsonl") == [1, 2, 3, 4, 5]
    assert steps_in(directory, "answers.jsonl") == [0]
    if checkpoint_at is not None:
        # Steps 3 and 4 were made twice: what stands there is the second attempt's, with nothing of the first.
        assert [sorted(name for name in line if name.startswith("from_")) for line in lines[1:]] == [
            ["from_None"],
            ["from_None"],
            ["from_2"],
            ["from_2"],
            ["from_2"],
        ]
    past = [line["wall_s"] for line in lines]
    assert past == sorted(past)
    resumed = [] if checkpoint_at is None else ["resumed"]
    assert kinds(directory) == ["opened", "restarted", *resumed, "finished"]
    (restarted,) = [event for event in read_lines(directory / "events.jsonl") if event["kind"] == "restarted"]
    assert (restarted["step"], restarted["error"]) == (4, "WorkerError: policy rank 1 died")
    assert read_json(directory / "status.json") | {"updated": ""} == {
        "state": "finished",
        "step": 5,
        "steps": 5,
        "updated": "",
    }


def test_a_restart_ends_the_progress_display_of_the_attempt_that_failed(recipe, monkeypatch) -> None:
    shown: list[str] = []

    class Display:
        """Remembers when it was shown and closed; two live displays at once would write over each other."""

        def __init__(self, name: str, first: int, last: int, console: object) -> None:
            self.first = first
            shown.append(f"from {first}")

        def update(self, step: int, metrics: object) -> None:
            shown.append(f"{step}")

        def close(self) -> None:
            shown.append(f"closed {self.first}")

    monkeypatch.setattr("troupe.runs.run.build_progress", Display)
    lost = []

    def attempt(run: Run, first: int) -> None:
        for step in run.steps(first, 3):
            if step == 2 and first == 1:
                raise WorkerError("policy rank 1 died")
            run.end_step(step)

    with open_run(recipe()) as run:
        try:
            attempt(run, 1)
        except WorkerError as error:
            lost.append(error)  # as the job does: its traceback keeps the first attempt's frames alive
            run.start_again(error)
        attempt(run, 2)
    assert shown == ["from 1", "1", "closed 1", "from 2", "2", "3", "closed 2"]
