"""The steps of a run that can be measured: those with a checkpoint, and those with the run's own answers.

A run's own answers (answers.jsonl, from its held-out evaluation) stand for a model's only where it was asked the same
prompts in the same way; what differs is said in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from troupe.config.evaluation import AnsweringConfig
from troupe.config.rollout import LABEL as ENVIRONMENT, EnvironmentConfig, SamplingConfig
from troupe.errors import ConfigError, DataError
from troupe.evaluation.stored_answers import Answers
from troupe.files import read_lines
from troupe.records import Branch, Group, Sample, Score
from troupe.report.report_data import RunRecord, read_run
from troupe.runs.checkpoint import CheckpointStore
from troupe.runs.run_records import answer_row

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""Finish reason of an answer in answers.jsonl, which does not say how it ended."""


def run_of(path: Path) -> Path:
    """Return the run directory that `path` is, or that has this checkpoint.

    >>> str(run_of(Path("runs/x/checkpoints/best"))), str(run_of(Path("runs/x")))
    ('runs/x', 'runs/x')
    """
    parts = path.parts
    return Path(*parts[: parts.index("checkpoints")]) if "checkpoints" in parts[1:] else path


class TrainedRun:
    """The steps of a run directory, named by itself or by a checkpoint in it. DataError when it is none."""

    def __init__(self, directory: Path) -> None:
        self.directory = run_of(directory)
        self.record: RunRecord = read_run(self.directory)
        self._checkpoints = CheckpointStore(self.directory / "checkpoints")

    @property
    def any_checkpoint(self) -> str | None:
        """A checkpoint; its tokenizer decides which prompts are too long."""
        step = self._checkpoints.latest()
        return None if step is None else str(self._checkpoints.path(step))

    @property
    def start(self) -> str:
        """The model that the run's recipe starts from; ConfigError where it makes its own."""
        model = self.record.config.get("model") or {}
        if not model.get("path"):
            raise ConfigError(
                f"base start: {self.directory} starts from a model of its own making, which is not kept; leave base "
                "out (step 0 is that model), or name a directory or hub name"
            )
        return str(model["path"])

    def steps(
        self, wanted: Sequence[int | str], samples: Sequence[Sample], stored: Mapping[int, Answers]
    ) -> dict[int, str | None]:
        """Return the wanted steps with their checkpoints, None where only answers are `stored`. Raises DataError."""
        kept = self._checkpoints.steps()
        there = sorted({*kept, *stored})
        if not there:
            raise DataError(
                f"{self.directory} has no complete checkpoint and no answers to all {len(samples)} samples; train with "
                "checkpoint.every, or with evaluation.keep_answers of as many samples"
            )
        chosen: set[int] = set()
        for one in wanted:
            chosen |= set(there) if one == "all" else {self._resolve(one, there)}
        missing = sorted(chosen - set(there))
        if missing:
            raise DataError(
                f"{self.directory} has neither a checkpoint of step {missing[0]} nor its answers to all {len(samples)} "
                f"samples; there are {', '.join(map(str, there))}"
            )
        return {step: str(self._checkpoints.path(step)) if step in kept else None for step in sorted(chosen)}

    def _resolve(self, one: int | str, there: Sequence[int]) -> int:
        if one == "best":
            best = self._checkpoints.best()
            if best is None:
                raise DataError(f"{self.directory} keeps no best checkpoint; name first, last, all or numbers in steps")
            return best
        return {"first": there[0], "last": there[-1]}[one] if isinstance(one, str) else one

    # -- its own answers -----------------------------------------------------------------------------------------

    def kept_samples(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return those that the run has kept answers to. DataError when there are none."""
        kept = {line.get("sample_id") for line in read_lines(self.directory / "answers.jsonl")}
        found = [sample for sample in samples if sample.sample_id in kept]
        if not found:
            raise DataError(
                f"{self.directory}/answers.jsonl has answers to none of the {len(samples)} held-out samples; give the "
                "run's own data, or kept_samples_only: false"
            )
        return found

    def stored_answers(self, config: AnsweringConfig, samples: Sequence[Sample]) -> dict[int, Answers]:
        """Return step -> answers to all of the samples, of steps with the prompts and sampling of `config`."""
        lines = read_lines(self.directory / "answers.jsonl")
        difference = self._difference(config)
        if not lines or difference is not None:
            if lines:
                log.info("the answers in %s are not used: %s", self.directory, difference)
            return {}
        prompts = {
            sample.sample_id: answer_row(Group(sample=sample, prompt_ids=(), branches=[_branch("")]))["prompt"]
            for sample in samples
        }
        by_step: dict[int, dict[str, Branch]] = {}
        for line in lines:
            if line.get("prompt") == prompts.get(line.get("sample_id", ""), ...):
                outcome = None if config.environment is None else _outcome(line)
                by_step.setdefault(line["step"], {})[line["sample_id"]] = _branch(line["text"], outcome)
        return {step: answers for step, answers in by_step.items() if len(answers) == len(samples)}

    def _difference(self, config: AnsweringConfig) -> str | None:
        """Describe how prompts or sampling of the run differ, None where they do not."""
        recipe = self.record.config
        # Reinforcement learning evaluates by `evaluation`, supervised training by `generation`.
        asked: Mapping[str, Any] = recipe.get("generation") or recipe.get("evaluation") or {}
        longest = asked.get("max_response_tokens") or (recipe.get("rollout") or {}).get("max_response_tokens")
        known = SamplingConfig(**{name: asked[name] for name in SamplingConfig.model_fields if name in asked})
        theirs = {**known.model_dump(), "max_response_tokens": longest}
        ours = {name: getattr(config, name) for name in theirs}
        theirs["environment"], ours["environment"] = _rules(recipe.get("environment")), _rules(config.environment)
        if config.temperature > 0 or config.environment is not None:  # an opponent may be a function of the seed
            theirs["seed"], ours["seed"] = recipe.get("seed"), config.seed
        differing = [
            f"{name} is {ours[name]} here and was {theirs[name]}" for name in ours if ours[name] != theirs[name]
        ]
        return "; ".join(differing) or None


def _branch(text: str, outcome: Score | None = None) -> Branch:
    return Branch(token_ids=(), text=text, finish_reason=UNKNOWN, outcome=outcome)


def _outcome(line: Mapping[str, Any]) -> Score:
    """Return what an environment gave for a game, from the metrics of its line."""
    metrics = line.get("metrics") or {}
    parts = {name: value for name, value in metrics.items() if name.partition("/")[0] == ENVIRONMENT}
    return Score(value=metrics.get(ENVIRONMENT), parts=parts)


def _rules(environment: EnvironmentConfig | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return what decides games: in which order engines answer does not."""
    if environment is None:
        return None
    known = environment if isinstance(environment, EnvironmentConfig) else EnvironmentConfig.model_validate(environment)
    return known.model_dump(exclude={"order"})
