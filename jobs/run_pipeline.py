"""Run a pipeline: stages that each are a job with its recipe, where later ones take what earlier ones hand over.

    python jobs/run_pipeline.py configs/pipelines/x.yaml [stages.sft.set.steps=10 ...] [until=dpo] [--dry-run]

Every stage's recipe is checked before the first starts. The same command goes on where it ended: finished stages are
skipped. How to write one, and what runs again when: docs/pipelines.md.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import OmegaConf

from troupe.config.fields import flat_values
from troupe.config.loader import dump_config
from troupe.config.program import run_program
from troupe.config.tools import PipelineConfig, Reference, StageConfig
from troupe.config.yaml_text import read_yaml
from troupe.errors import ConfigError, WorkerError
from troupe.files import now, read_json, to_json, write_atomically
from troupe.ops.dry_runs import DryRun, dry_runs
from troupe.ops.pipeline import Decision, PipelineState, State, as_json, begun_again, decide, handover, without_inputs
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
        place = (
            [override("run.directory", str(self.path.parent)), override("run.name", self.name)]
            if self.is_run
            else [override("output", str(self.path))]
        )
        # What another recipe began is not continued; `never` moves it aside.
        anew = ["run.resume=never"] if self.is_run and decision.action == "anew" else []
        return [*self.begins, *(override(key, value) for key, value in inputs.items()), *place, *anew]


def run_pipeline(config: PipelineConfig) -> None:
    config = with_secrets_named(config)
    checked = check_stages(config)
    with locked(config.path):
        config.path.mkdir(parents=True, exist_ok=True)
        write_atomically(config.path / "pipeline.yaml", dump_config(config))
        state = PipelineState(config)
        decisions = plan(config, checked, state)
        for line in plan_lines(config, decisions):
            print(line, flush=True)
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
    """What `--dry-run` prints: every stage is checked, nothing is started or written."""
    config = with_secrets_named(config)
    checked = check_stages(config)
    state = PipelineState(config)
    decisions = plan(config, checked, state)
    for line in plan_lines(config, decisions):
        print(line)
    for name, decision in decisions.items():
        inputs = placeholders(config, checked[name].config) if decision.action != "skip" else {}
        if decision.action != "skip":
            print(f"\n# {name}\n{shlex.join(checked[name].command(inputs, decision))}")


def with_secrets_named(config: PipelineConfig) -> PipelineConfig:
    """Secrets from the environment as `${oc.env:NAME}` again: they stay out of command lines, and the stages inherit them."""
    return PipelineConfig.model_validate(public_values(config))


# -- checking --------------------------------------------------------------------------------------------------


def check_stages(config: PipelineConfig) -> dict[str, CheckedStage]:
    """Have every selected stage's job read its recipe; raises ConfigError with all that is wrong in any of them."""
    names = config.selected
    missing = [problem for name in names for problem in missing_files(config, name)]
    if missing:
        raise ConfigError("\n".join(missing))
    asked = dry_runs([check_command(config, name) for name in names])
    problems, checked = [], {}
    for name, answer in zip(names, asked, strict=True):
        try:
            checked[name] = checked_stage(config, name, answer)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return checked


def missing_files(config: PipelineConfig, name: str) -> Iterator[str]:
    stage = config.stages[name]
    if not job_file(config, stage.job).is_file():
        known = ", ".join(sorted(file.stem for file in jobs_directory(config).glob("*.py")))
        yield f"stages.{name}.job: there is no job {stage.job!r} in {jobs_directory(config)}; known there: {known}"
    if stage.recipe is not None and not Path(stage.recipe).is_file():
        yield f"stages.{name}.recipe: there is no file {stage.recipe!r}; recipes are named from where the command is given"


def jobs_directory(config: PipelineConfig) -> Path:
    return JOBS if config.jobs is None else Path(config.jobs)


def job_file(config: PipelineConfig, job: str) -> Path:
    return jobs_directory(config) / f"{job}.py"


def command_begins(config: PipelineConfig, stage: StageConfig) -> list[str]:
    settings = [override(key, value) for key, value in stage.set.items()]
    return [str(job_file(config, stage.job)), *([stage.recipe] if stage.recipe else []), *settings]


def check_command(config: PipelineConfig, name: str) -> list[str]:
    """The stage's command with names in place of what earlier stages will hand over."""
    stage = config.stages[name]
    inputs = [override(key, value) for key, value in placeholders(config, stage).items()]
    return [*command_begins(config, stage), *inputs]


def checked_stage(config: PipelineConfig, name: str, asked: DryRun) -> CheckedStage:
    """A stage whose job has answered with its resolved recipe; ConfigError with the job's own sentence if it has not."""
    stage = config.stages[name]
    if asked.status:
        raise ConfigError(f"the stage {name!r} ({stage.job}) cannot run: {sentence_of(asked.said)}")
    recipe = resolved_recipe(name, stage, asked.printed)
    return CheckedStage(
        name=name,
        config=stage,
        begins=[sys.executable, *command_begins(config, stage)],
        recipe=without_inputs(flat_values(recipe), stage.inputs),
        is_run="run" in recipe,
        path=config.path / name,
    )


def resolved_recipe(name: str, stage: StageConfig, printed: str) -> dict[str, Any]:
    try:
        recipe = OmegaConf.to_container(OmegaConf.create(printed), resolve=False)
    except Exception:  # yaml's errors have no common base with omegaconf's
        recipe = None
    if not isinstance(recipe, dict) or not {"run", "output"} & set(recipe):
        raise ConfigError(
            f"the stage {name!r} cannot run: the job {stage.job!r} has neither a `run` section nor an `output`, "
            "so there is no telling where its results would lie"
        )
    return {str(key): value for key, value in recipe.items()}


def sentence_of(stderr: str) -> str:
    """What a job said on its way out: its error, or the last line of a traceback."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    begins = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if begins:
        return "\n".join(lines[begins[0] :]).removeprefix("error: ")
    return lines[-1] if lines else "it said nothing"


def placeholders(config: PipelineConfig, stage: StageConfig) -> dict[str, Any]:
    """Inputs before they exist: the same names on every call, because recipes are compared from call to call."""

    def path_of(reference: Reference) -> str:
        return str(config.path / reference.stage / reference.inside)

    return filled(stage, path_of)


def filled(stage: StageConfig, path_of: Callable[[Reference], str]) -> dict[str, Any]:
    """The inputs of a stage as settings; one that is written as a list stays a list."""
    references = stage.references()
    return {
        key: [path_of(item) for item in references[key]] if isinstance(value, list) else path_of(references[key][0])
        for key, value in stage.inputs.items()
    }


def override(key: str, value: Any) -> str:
    """`key=value` that a job reads as exactly this value."""
    if isinstance(value, str) and not value.endswith((".yaml", ".yml")):
        try:
            if read_yaml(value) == value:
                return f"{key}={value}"
        except ValueError:  # not YAML by itself, so it needs its quotes
            pass
    return f"{key}={to_json(value)}"


# -- planning --------------------------------------------------------------------------------------------------


def plan(config: PipelineConfig, checked: Mapping[str, CheckedStage], state: PipelineState) -> dict[str, Decision]:
    """What happens to each selected stage; raises CheckpointError when one needs another that will not have run."""
    decisions: dict[str, Decision] = {}
    for name in config.selected:
        stage = checked[name]
        remade = [needed for needed in stage.config.needs if needed in decisions and decisions[needed].action != "skip"]
        present = resolved_inputs(stage.config, state, besides=remade)
        decisions[name] = decide(
            name,
            state[name],
            job=stage.config.job,
            recipe=stage.recipe,
            inputs=None if remade else present,
            remade=remade,
            forced=name in config.force,
        )
    return decisions


def resolved_inputs(stage: StageConfig, state: PipelineState, *, besides: list[str]) -> dict[str, list[dict[str, str]]]:
    return {
        key: [state.resolve(reference) for reference in references if reference.stage not in besides]
        for key, references in stage.references().items()
    }


def plan_lines(config: PipelineConfig, decisions: Mapping[str, Decision]) -> list[str]:
    return [f"pipeline {config.name} in {config.path}"] + [
        f"  {name:<20} {config.stages[name].job:<20} {decision.in_words()}" for name, decision in decisions.items()
    ]


# -- running ---------------------------------------------------------------------------------------------------


def run_stage(stage: CheckedStage, decision: Decision, state: PipelineState) -> None:
    """Run one stage to its end and keep what it left.

    Raises WorkerError with the end of its log when it fails, KeyboardInterrupt when it was stopped.
    """
    inputs = resolved_inputs(stage.config, state, besides=[])
    paths = filled(stage.config, lambda reference: state.resolve(reference)["path"])
    record = begun_again(
        state[stage.name],
        decision,
        job=stage.config.job,
        recipe=as_json(stage.recipe),
        inputs=inputs,
        output=str(stage.path),
    )
    state.put(stage.name, record)
    report(stage.path.parent)
    command = stage.command(paths, decision)
    log_file = stage.path.with_name(f"{stage.name}.log")
    with open(log_file, "a" if decision.action == "resume" else "w", encoding="utf-8") as file:
        file.write(f"# {now()} {shlex.join(command)}\n")
    begun = time.monotonic()
    ended = run_logged(command, log_file)
    record = replace(record, seconds=record.seconds + time.monotonic() - begun)
    outcome, error = outcome_of(stage, ended)
    left = str(handover(stage.path, is_run=stage.is_run)) if outcome == "finished" else None
    state.put(
        stage.name,
        replace(
            record,
            state=outcome,
            handover=left,
            error=error,
            tail=list(ended.tail) if error else [],
        ),
    )
    report(stage.path.parent)
    if outcome == "failed":
        raise WorkerError(
            "\n".join([f"{error}; its log is {log_file} and ends:", *(f"  | {line}" for line in ended.tail)])
        )
    if outcome == "stopped" or ended.interrupted or signal_of(ended.status):
        pipeline = stage.path.parent / "pipeline.yaml"
        raise Interrupted(
            signal_of(ended.status) or signal.SIGINT,
            f"in the stage {stage.name}; the pipeline goes on with: python jobs/run_pipeline.py {pipeline}",
        )


def outcome_of(stage: CheckedStage, ended: Ended) -> tuple[State, str | None]:
    """How a stage ended, and why in a sentence if it failed."""
    said = (read_json(stage.path / "status.json") or {}).get("state") if stage.is_run else None
    if ended.status and (ended.interrupted or signal_of(ended.status)):
        return "finished" if said == "finished" else "stopped", None
    if ended.status:
        how = f"ended with status {ended.status}" if ended.status > 0 else f"was killed by {signal_name(-ended.status)}"
        why = next((f": {line.removeprefix('error: ')}" for line in ended.tail if line.startswith("error: ")), "")
        return "failed", f"the stage {stage.name!r} ({stage.config.job}) {how}{why}"
    if not stage.is_run:
        return "finished", None
    if said in ("finished", "stopped"):
        return said, None
    return "failed", f"the stage {stage.name!r} ({stage.config.job}) ended, but its status.json says {said!r}"


def signal_of(status: int) -> int | None:
    """The signal by which a stage was interrupted, as its exit status or its death says; None where it was not."""
    number = status - 128 if status > 0 else -status
    return number if number in (signal.SIGINT, signal.SIGTERM) else None


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def report(path: Path) -> None:
    try:
        build_pipeline_report(path)
    except Exception:
        log.exception("the report of %s could not be built; the next call builds it again", path)


if __name__ == "__main__":
    # A pipeline's dry run asks every stage and prints their command lines, not its own recipe.
    dry_run = "--dry-run" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--dry-run"]
    run_program(show_plan if dry_run else run_pipeline, PipelineConfig, "jobs/run_pipeline.py")
