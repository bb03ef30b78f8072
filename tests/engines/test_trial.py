"""An engine's first request is tried apart: what the processor kills falls back, and is tried once.

A real engine whose kernel dies is in tests/long/test_engine_trial.py.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from troupe.config.grpo import GRPOConfig
from troupe.engines import trial as module
from troupe.engines.trial import (
    EngineDiesError,
    Running,
    Trial,
    engine_trial,
    forget_deaths,
    remembered_trial,
    settle_engine,
    trial_beside,
)
from troupe.errors import WorkerError
from troupe.hardware import HIDE_AMX, hardware
from troupe.training import context

DIES = """
import os, signal, sys
if "troupe.engines.trial" in sys.orig_argv:
    print(sys.orig_argv[-1], file=open(os.environ["TRIALS"], "a"))
    os.kill(os.getpid(), signal.Signals[os.environ["DIES_BY"]])
"""
"""sitecustomize.py: what Python runs before the child's first line."""


@pytest.fixture(autouse=True)
def a_new_machine(tmp_path, monkeypatch):
    """Nothing is remembered, and AMX is not hidden."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(HIDE_AMX, "")
    monkeypatch.delenv(HIDE_AMX)


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """Children that die by SIGILL before they say a word; the precisions that were tried."""
    (tmp_path / "sitecustomize.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TRIALS", str(tmp_path / "trials"))
    monkeypatch.setenv("DIES_BY", "SIGILL")
    return lambda: (tmp_path / "trials").read_text().split() if (tmp_path / "trials").exists() else []


def test_what_dies_is_tried_once_for_each_precision_and_version(trials, monkeypatch):
    for _ in range(2):
        with pytest.raises(EngineDiesError, match=r"dies on this processor in bf16 \(engine by SIGILL\); set .* fp32"):
            engine_trial("bf16")
    assert trials() == ["bf16"]
    with pytest.raises(EngineDiesError):
        settle_engine("bf16")
    with pytest.raises(EngineDiesError):
        engine_trial("fp32")
    monkeypatch.setattr(module, "_version", lambda package: "another")
    with pytest.raises(EngineDiesError):
        engine_trial("bf16")
    assert trials() == ["bf16", "fp32", "bf16"]


def test_a_kill_says_nothing_of_the_processor_and_is_not_remembered(trials, monkeypatch):
    monkeypatch.setenv("DIES_BY", "SIGKILL")
    with pytest.raises(
        WorkerError, match=r"tried apart, was ended by SIGKILL .* while it answered a first request"
    ) as raised:
        engine_trial("bf16")
    assert not isinstance(raised.value, EngineDiesError)
    assert remembered_trial("bf16") is None


def test_a_home_that_cannot_be_written_only_forgets(trials, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    for _ in range(2):
        with pytest.raises(EngineDiesError):
            engine_trial("bf16")
    assert trials() == ["bf16", "bf16"]


# -- what is remembered -----------------------------------------------------------------------------------------------

ANSWERED = Trial(precision="bf16", kernel="amx", hides_amx=False, deaths=())
FELL_BACK = Trial(precision="bf16", kernel="vec", hides_amx=True, deaths=("amx by SIGILL",))


def remember(trial: Trial) -> Trial:
    return module._remember(module._memory(trial.precision), trial)


@pytest.mark.parametrize(
    ("trial", "sentence"),
    [
        (ANSWERED, "vLLM computes attention with its kernel amx in bf16"),
        (FELL_BACK, "vLLM computes attention with its kernel vec in bf16; amx by SIGILL on this processor"),
        (
            Trial(precision="fp32", kernel=None, hides_amx=False, deaths=("amx by SIGILL", "vec by SIGFPE")),
            "vLLM's engine dies on this processor in fp32 (amx by SIGILL and vec by SIGFPE)",
        ),
    ],
)
def test_a_trial_is_a_sentence(trial: Trial, sentence: str):
    assert str(trial) == sentence


@pytest.mark.parametrize("trial", [ANSWERED, FELL_BACK])
def test_what_was_tried_is_read_back_for_its_precision_alone(trial: Trial):
    assert remembered_trial("bf16") is None
    remember(trial)
    assert remembered_trial("bf16") == trial
    assert remembered_trial("fp32") is None


@pytest.mark.parametrize("change", ["versions", "processor", "kernel", "hidden AMX"])
def test_another_machine_or_version_is_tried_anew(change: str, monkeypatch):
    remember(ANSWERED)
    if change == "versions":
        monkeypatch.setattr(module, "_version", lambda package: "another")
    if change == "processor":
        monkeypatch.setattr(module, "processor_name", lambda: "another")
    if change == "kernel":
        monkeypatch.setattr(module.platform, "release", lambda: "another")
    if change == "hidden AMX":
        monkeypatch.setenv(HIDE_AMX, "1")
    assert remembered_trial("bf16") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"trial": {}}', '{"trial": {"kernel": "amx"}}', "null"])
def test_a_memory_that_is_damaged_is_none(content: str):
    memory = module._memory("bf16")
    memory.parent.mkdir(parents=True)
    memory.write_text(content)
    assert remembered_trial("bf16") is None


def test_only_a_death_is_forgotten():
    remember(ANSWERED)
    forget_deaths("bf16")
    assert remembered_trial("bf16") == ANSWERED
    remember(FELL_BACK)
    forget_deaths("bf16")
    assert remembered_trial("bf16") is None
    forget_deaths("bf16")  # nothing is there, and nothing happens


def test_a_remembered_death_of_a_kernel_hides_it_from_the_next_engine(monkeypatch):
    monkeypatch.setattr(module, "use_amx", lambda: None)  # torch of this process stays as it is
    remember(ANSWERED)
    settle_engine("bf16")
    assert HIDE_AMX not in os.environ
    remember(FELL_BACK)
    settle_engine("bf16")
    assert os.environ[HIDE_AMX] == "1"


def test_on_a_gpu_nothing_is_tried(trials, monkeypatch):
    machine = dataclasses.replace(hardware(), device="cuda")
    monkeypatch.setattr(module, "hardware", lambda: machine)
    settle_engine("bf16")
    assert trials() == []


def test_engines_that_start_together_wait_for_one_trial(trials, monkeypatch):
    with ThreadPoolExecutor(3) as pool:
        tries = [pool.submit(engine_trial, "bf16") for _ in range(3)]
        assert all(isinstance(one.exception(60), EngineDiesError) for one in tries)
    assert trials() == ["bf16"]


def test_a_trial_that_was_ended_starts_no_child():
    running = Running()
    running.end()
    with pytest.raises(WorkerError, match="the trial of the engine was ended"):
        running.start([sys.executable, "-c", ""], {})


def test_a_trial_that_has_not_ended_with_what_it_runs_beside_is_ended(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        'import sys, time\nif "troupe.engines.trial" in sys.orig_argv: time.sleep(600)\n'
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with trial_beside("bf16") as trial:
        assert not trial.done()
    assert isinstance(trial.exception(60), WorkerError)
    assert remembered_trial("bf16") is None


# -- beside the warm start --------------------------------------------------------------------------------------------


def test_a_run_goes_on_in_fp32_unless_its_recipe_names_bf16(trials, monkeypatch, caplog):
    answers = Trial(precision="fp32", kernel="vec", hides_amx=False, deaths=())
    module._remember(module._memory("fp32"), answers)
    monkeypatch.setattr(context, "starting_model", lambda *_, precision, **__: f"model in {precision}")
    recipe = {"policy": {"precision": "auto"}, "model": {"type": "pretrained", "path": "m"}}
    assert context._tried_model(GRPOConfig(**recipe), None, None, None, "bf16") == ("model in fp32", "fp32")
    assert "dies on this processor in bf16 (engine by SIGILL)" in caplog.text
    assert "goes on in fp32" in caplog.text
    recipe["policy"]["precision"] = "bf16"
    with pytest.raises(EngineDiesError):
        context._tried_model(GRPOConfig(**recipe), None, None, None, "bf16")


def test_an_engine_that_fails_ends_the_warm_start_at_its_next_step(monkeypatch):
    trial: Future[Trial] = Future()
    done = []

    def warm_start(*_, progress, **__):
        for step in range(1, 1000):
            done.append(step)
            progress(step, 1000, {"sft/nll": 0.0})
            if step == 2:
                trial.set_exception(WorkerError("vLLM's engine failed"))

    monkeypatch.setattr(context, "starting_model", warm_start)
    config = GRPOConfig(model={"type": "pretrained", "path": "m"})
    with pytest.raises(WorkerError, match="engine failed"):
        context._starting_model(config, None, None, None, "bf16", beside=trial)
    assert done == [1, 2, 3]
