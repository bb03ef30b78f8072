"""Run a pipeline: stages that each are a job with its recipe, where later ones take what earlier ones hand over.

    python jobs/run_pipeline.py configs/pipelines/x.yaml [stages.sft.set.steps=10 ...] [until=dpo] [--dry-run]

Every stage's recipe is checked before the first starts. The same command goes on where it ended: finished stages are
skipped. How to write one, and what runs again when: docs/pipelines.md.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from troupe.config.fields import flat_values
from troupe.config.loader import dump_config
from troupe.config.program import run_program
from troupe.config.tools import PipelineConfig, StageConfig
from troupe.config.yaml_text import read_yaml
from troupe.errors import ConfigError, WorkerError
from troupe.files import now, read_json, to_json, write_atomically
from troupe.ops.dry_runs import DryRun, dry_runs
from troupe.ops.pipeline import Decision, PipelineState, State, begun_again, comparable, decide, handover
from troupe.ops.pipeline_report import build_pipeline_report
from troupe.processes.progress import duration
from troupe.processes.stopping import Interrupted
from troupe.processes.subprocesses import Ended, run_logged
from troupe.project import JOBS
from troupe.runs.run_directory import locked
from troupe.secrets import public_values

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedStage:
    """A stage whose job accepts its recipe."""

    name: str
    config: StageConfig
    begins: list[str]
    """Its command line up to the inputs."""
    recipe: Mapping[str, Any]
    """What decides its result beside the inputs: the resolved recipe, flat."""
    is_run: bool
    """Whether its job writes a run directory; else it takes `output`."""
    path: Path

    def command(self, inputs: Mapping[str, Any], decision: Decision) -> list[str]:
        settings = {**inputs, "output": str(self.path)}
        if self.is_run:
            settings = {**inputs, "run.directory": str(self.path.parent), "run.name": self.name}
            if decision.action == "anew":  # what another recipe began is not continued; `never` moves it aside
                settings["run.resume"] = "never"
        return [sys.executable, *self.begins, *overrides(settings)]


def run_pipeline(config: PipelineConfig) -> None:
    """Check all stages, then run those that are due one after the other."""
    config = with_secrets_named(config)
    checked = check_stages(config)
    with locked(config.path):
        config.path.mkdir(parents=True, exist_ok=True)
        write_atomically(config.path / "pipeline.yaml", dump_config(config))
        state = PipelineState(config)
        decisions = show_decisions(config, checked, state)
        try:
            for number, (name, decision) in enumerate(decisions.items(), start=1):
                if decision.action != "skip":
                    print(f"\n[{number}/{len(decisions)}] {name} ({checked[name].config.job})", flush=True)
                    run_stage(checked[name], decision, state)
        finally:
            report(config.path)
    for name in decisions:
        print(f"{name:<20} {duration(state[name].seconds):>8}  {state[name].handover or state[name].output}")
    print(f"report               {config.path / 'report.html'}")


def show_plan(config: PipelineConfig) -> None:
    """Print the decisions and command lines (`--dry-run`): every stage is checked, nothing is started or written."""
    config = with_secrets_named(config)
    checked = check_stages(config)
    for name, decision in show_decisions(config, checked, PipelineState(config)).items():
        if decision.action != "skip":
            stage = checked[name]
            print(f"\n# {name}\n{shlex.join(stage.command(placeholders(config, stage.config), decision))}")


def with_secrets_named(config: PipelineConfig) -> PipelineConfig:
    """Write secrets as `${oc.env:NAME}` again: stages inherit them, and command lines do not show them."""
    return PipelineConfig.model_validate(public_values(config))


def show_decisions(
    config: PipelineConfig, checked: Mapping[str, CheckedStage], state: PipelineState
) -> dict[str, Decision]:
    """Print what happens to each stage, and return it."""
    decisions = plan(config, checked, state)
    print(f"pipeline {config.name} in {config.path}")
    for name, decision in decisions.items():
        print(f"  {name:<20} {config.stages[name].job:<20} {decision.in_words()}", flush=True)
    return decisions


# -- checking --------------------------------------------------------------------------------------------------


def check_stages(config: PipelineConfig) -> dict[str, CheckedStage]:
    """Have every selected stage's job read its recipe; raises ConfigError with all that is wrong in any of them."""
    names = config.selected
    missing = [problem for name in names for problem in missing_files(config, name)]
    if missing:
        raise ConfigError("\n".join(missing))
    answers = dry_runs([check_command(config, name) for name in names])
    problems, checked = [], {}
    for name, answer in zip(names, answers, strict=True):
        try:
            checked[name] = checked_stage(config, name, answer)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return checked


def missing_files(config: PipelineConfig, name: str) -> Iterator[str]:
    """Yield a sentence for each file that a stage names and that is not there."""
    stage = config.stages[name]
    job = job_file(config, stage)
    if not job.is_file():
        known = ", ".join(sorted(file.stem for file in job.parent.glob("*.py")))
        yield f"stages.{name}.job: there is no job {stage.job!r} in {job.parent}; known there: {known}"
    if stage.recipe is not None and not Path(stage.recipe).is_file():
        yield (
            f"stages.{name}.recipe: there is no file {stage.recipe!r}; recipes are named from where the "
            f"command is given"
        )


def job_file(config: PipelineConfig, stage: StageConfig) -> Path:
    return Path(config.jobs or JOBS, f"{stage.job}.py")


def command_begins(config: PipelineConfig, stage: StageConfig) -> list[str]:
    return [str(job_file(config, stage)), *([stage.recipe] if stage.recipe else []), *overrides(stage.set)]


def check_command(config: PipelineConfig, name: str) -> list[str]:
    """Return the stage's command with names in place of what earlier stages will hand over."""
    stage = config.stages[name]
    return [*command_begins(config, stage), *overrides(placeholders(config, stage))]


def checked_stage(config: PipelineConfig, name: str, answer: DryRun) -> CheckedStage:
    """Return a stage whose job printed its resolved recipe; raises ConfigError with the job's own sentence."""
    stage = config.stages[name]
    if answer.status:
        raise ConfigError(f"the stage {name!r} ({stage.job}) cannot run: {sentence_of(answer.said)}")
    recipe = None
    with contextlib.suppress(ValueError):  # a job that prints something else than YAML
        recipe = read_yaml(answer.printed)
    if not isinstance(recipe, dict) or not {"run", "output"} & set(recipe):
        raise ConfigError(
            f"the stage {name!r} cannot run: the job {stage.job!r} has neither a `run` section nor an `output`, "
            "so there is no telling where its results would lie"
        )
    return CheckedStage(
        name=name,
        config=stage,
        begins=command_begins(config, stage),
        recipe=comparable(flat_values(recipe), stage.inputs),
        is_run="run" in recipe,
        path=config.path / name,
    )


def sentence_of(stderr: str) -> str:
    """Return the error of a job, or the last line of its traceback."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    begins = next((index for index, line in enumerate(lines) if line.startswith("error: ")), -1)
    return "\n".join(lines[begins:]).removeprefix("error: ") or "it printed nothing"


def placeholders(config: PipelineConfig, stage: StageConfig) -> dict[str, Any]:
    """Return inputs before they exist: the same names on every call, because recipes are compared from call to call."""
    given = stage.references()
    return filled(stage, {key: [str(config.path / one.stage / one.inside) for one in given[key]] for key in given})


def filled(stage: StageConfig, paths: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the inputs of a stage as settings; one that is written as a list stays a list."""
    return {key: paths[key] if isinstance(value, list) else paths[key][0] for key, value in stage.inputs.items()}


def overrides(settings: Mapping[str, Any]) -> list[str]:
    return [override(key, value) for key, value in settings.items()]


def override(key: str, value: Any) -> str:
    """Write `key=value` so that a job reads exactly this value."""
    if isinstance(value, str) and not value.endswith((".yaml", ".yml")):
        with contextlib.suppress(ValueError):  # not YAML by itself, so it needs its quotes
            if read_yaml(value) == value:
                return f"{key}={value}"
    return f"{key}={to_json(value)}"


# -- planning --------------------------------------------------------------------------------------------------


def plan(config: PipelineConfig, checked: Mapping[str, CheckedStage], state: PipelineState) -> dict[str, Decision]:
    """Decide what happens to each selected stage; raises CheckpointError where one needs another that will not run."""
    decisions: dict[str, Decision] = {}
    for name in config.selected:
        stage = checked[name].config
        remade = [needed for needed in stage.needs if needed in decisions and decisions[needed].action != "skip"]
        present = resolved_inputs(stage, state, besides=remade)
        decisions[name] = decide(
            state[name],
            job=stage.job,
            recipe=checked[name].recipe,
            inputs=None if remade else present,
            remade=remade,
            forced=name in config.force,
        )
    return decisions


def resolved_inputs(
    stage: StageConfig, state: PipelineState, besides: Collection[str] = ()
) -> dict[str, list[dict[str, str]]]:
    return {
        key: [state.resolve(reference) for reference in references if reference.stage not in besides]
        for key, references in stage.references().items()
    }


# -- running ---------------------------------------------------------------------------------------------------


def run_stage(stage: CheckedStage, decision: Decision, state: PipelineState) -> None:
    """Run one stage to its end and keep what it left. Raises WorkerError with its log's end, or Interrupted."""
    inputs = resolved_inputs(stage.config, state)
    paths = filled(stage.config, {key: [one["path"] for one in inputs[key]] for key in inputs})
    given = {"job": stage.config.job, "recipe": stage.recipe, "output": str(stage.path)}
    record = begun_again(state[stage.name], decision, **given, inputs=inputs)
    state.put(stage.name, record)
    report(stage.path.parent)
    command = stage.command(paths, decision)
    log_file = stage.path.with_name(f"{stage.name}.log")
    with open(log_file, "a" if decision.action == "resume" else "w", encoding="utf-8") as file:
        file.write(f"# {now()} {shlex.join(command)}\n")
    started = time.monotonic()
    ended = run_logged(command, log_file)
    outcome, error = outcome_of(stage, ended)
    state.put(
        stage.name,
        replace(
            record,
            state=outcome,
            seconds=record.seconds + time.monotonic() - started,
            handover=str(handover(stage.path, is_run=stage.is_run)) if outcome == "finished" else None,
            error=error,
            tail=ended.tail if error else [],
        ),
    )
    if error:
        raise WorkerError(
            "\n".join([f"{error}; its log is {log_file} and ends:", *(f"  | {line}" for line in ended.tail)])
        )
    number = interruption_of(ended)
    if outcome == "stopped" or number:
        go_on = f"the pipeline goes on with: python jobs/run_pipeline.py {stage.path.parent / 'pipeline.yaml'}"
        raise Interrupted(number or signal.SIGINT, f"in the stage {stage.name}; {go_on}")


def outcome_of(stage: CheckedStage, ended: Ended) -> tuple[State, str | None]:
    """Return how a stage ended, and why in a sentence if it failed."""
    state: Any = (read_json(stage.path / "status.json") or {}).get("state") if stage.is_run else "finished"
    if ended.status and interruption_of(ended):
        return "finished" if stage.is_run and state == "finished" else "stopped", None
    if not ended.status and state in ("finished", "stopped"):
        return state, None
    if not ended.status:
        how = f"ended, but its status.json says {state!r}"
    elif ended.status > 0:
        how = f"ended with status {ended.status}"
    else:
        how = f"was killed by signal {-ended.status} ({signal.strsignal(-ended.status)})"
    why = next((f": {line.removeprefix('error: ')}" for line in ended.tail if line.startswith("error: ")), "")
    return "failed", f"the stage {stage.name!r} ({stage.config.job}) {how}{why}"


def interruption_of(ended: Ended) -> int | None:
    """Return the signal that interrupted a stage: its exit status, its death, or one that we passed on."""
    number = ended.status - 128 if ended.status > 0 else -ended.status
    if number in (signal.SIGINT, signal.SIGTERM):
        return number
    return signal.SIGINT if ended.interrupted else None


def report(path: Path) -> None:
    try:
        build_pipeline_report(path)
    except Exception:
        log.exception("the report of %s could not be built; the next call builds it again", path)


if __name__ == "__main__":
    # A pipeline's dry run checks every stage and prints their command lines, not its own recipe.
    dry_run = "--dry-run" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--dry-run"]
    run_program(show_plan if dry_run else run_pipeline, PipelineConfig, "jobs/run_pipeline.py")
