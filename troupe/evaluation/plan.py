"""The plan of an evaluation: candidates, prompts, metrics and judges, found and checked before a device is taken.

`jobs/evaluate.py` and `jobs/benchmark.py` differ in what their configs name; from here on they are one program.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from troupe.actors.reward_model import require_same_tokenizer
from troupe.agents import build_program
from troupe.chat import ChatForm, load_form
from troupe.config.evaluation import REFERENCE, START, AnsweringConfig, BenchmarkConfig, EvaluateConfig
from troupe.config.models import RewardModelConfig
from troupe.data import load_data
from troupe.data.reference_answers import read_answers
from troupe.environments import build_environment
from troupe.environments.tools import build_tools, with_tools
from troupe.errors import ConfigError, DataError
from troupe.evaluation.checkpoint_sources import TrainedRun
from troupe.evaluation.endpoint_answers import AnsweringEndpoint
from troupe.evaluation.stored_answers import Answers
from troupe.records import Branch, Sample
from troupe.report.trackers import check_trackers
from troupe.rewards.build import Rewards, build_rewards
from troupe.rewards.scorer_prompt import handed_over, prompt_with
from troupe.runs.bucket import Bucket
from troupe.runs.fingerprint import tokenizer_fingerprint, weights_fingerprint
from troupe.runs.model_check import check_answerer, locate_reward_model
from troupe.runs.model_paths import locate
from troupe.training.preparation import prompt_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model, or a file of answers, that is measured."""

    name: str
    kind: Literal["trained", "base", "model", "endpoint", "file"]
    step: int | None = None
    path: str | None = None
    """Directory or hub name, for those that may answer here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """Candidates, their prompts, and what is measured of the answers; every mistake was found when it was made."""

    samples: Sequence[Sample]
    """The held-out samples whose prompts fit every model."""
    too_long: int
    candidates: Sequence[Candidate]
    prompts: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """Candidate -> the samples with its own prompts, where these are not the data's."""
    stored: Mapping[str, Answers] = field(default_factory=dict)
    """Answers that exist already: the references, those of a file, and those that a run has kept."""
    forms: Mapping[str, ChatForm] = field(default_factory=dict)
    """How the candidates that answer here read their prompts."""
    endpoints: Mapping[str, AnsweringEndpoint] = field(default_factory=dict)
    rewards: Rewards | None = None
    reward_model: RewardModelConfig | None = None
    judges: Rewards | None = None
    """The judge of preferences, once for each dimension."""
    compared: Sequence[str] = ()
    """The candidates whose answers the judges compare."""
    repeats: int = 1
    """Answers of each candidate to a sample."""
    max_missing: float = 0.0
    """Share of a candidate's answers that may be missing."""
    bucket: Bucket | None = None

    def prompts_of(self, name: str) -> Sequence[Sample]:
        """Return the samples with the prompts of this candidate."""
        return self.prompts.get(name, self.samples)

    def lines(self) -> list[str]:
        """Return what a dry run shows: one prompt of every model that reads it in its own way."""
        names = ", ".join(candidate.name for candidate in self.candidates)
        shown = [
            f"{len(self.samples)} held-out prompts, {self.too_long} more are too long; they are answered by {names}"
        ]
        known: set[tuple[str, ...]] = set()
        for candidate in self.candidates:
            if candidate.name in self.forms:
                form, first = self.forms[candidate.name], self.prompts_of(candidate.name)[0]
                prompt = [form.described(), *prompt_lines(form, first, form.prompt(first))]
                shown += [f"{candidate.name}: {candidate.path}", *([] if tuple(prompt) in known else prompt)]
                known.add(tuple(prompt))
        return shown


def prepare(config: EvaluateConfig | BenchmarkConfig) -> EvaluationPlan:
    """Read and check everything before a device is taken or a question paid for (refusals: docs/evaluation.md)."""
    check_trackers(config.trackers, mode=config.wandb.mode)
    rewards = build_rewards(config.all_metrics) if config.all_metrics else None
    if isinstance(config, BenchmarkConfig):
        return plan_benchmark(config, rewards)
    return plan_evaluation(config, rewards)


def plan_evaluation(config: EvaluateConfig, rewards: Rewards | None) -> EvaluationPlan:
    """Plan the models of `config` and what they are compared with."""
    if config.environment is not None:
        build_environment(config.environment)
    if config.agent is not None:
        build_program(config.agent)
    paths = {name: check_answerer(path, f"models.{name}", config) for name, path in config.named_models.items()}
    reward_model = locate_reward_model(config.reward_model) if config.reward_model is not None else None
    samples = with_tools(load_data(config.data).heldout[: config.num_samples], build_tools(config.tools))
    check_samples(config, samples, rewards)
    forms = load_forms(config, paths, reward_model)
    prompts = prompts_with_contexts(config, samples, forms)
    fitting = fitting_samples(config, samples, forms, prompts)
    kept = {sample.sample_id for sample in fitting}
    stored = other_answers(config, fitting)
    return EvaluationPlan(
        samples=fitting,
        too_long=len(samples) - len(fitting),
        candidates=[
            *(Candidate(name=name, kind="model", path=path) for name, path in paths.items()),
            *(Candidate(name=name, kind="file") for name in stored if name != REFERENCE),
        ],
        prompts={name: [sample for sample in each if sample.sample_id in kept] for name, each in prompts.items()},
        stored=stored,
        forms=forms,
        rewards=rewards,
        reward_model=reward_model,
    )


def plan_benchmark(config: BenchmarkConfig, rewards: Rewards | None) -> EvaluationPlan:
    """Plan the steps of a run, its base model, other models here and those behind endpoints."""
    judges = build_rewards(config.preferences.judges()) if config.preferences is not None else None
    games = None if config.environment is None else build_environment(config.environment)
    endpoints = {name: AnsweringEndpoint(name, settings, config, games) for name, settings in config.endpoints.items()}
    bucket = None if config.upload is None else Bucket(config.upload)
    reward_model = locate_reward_model(config.reward_model) if config.reward_model is not None else None
    run = None if config.trained is None else TrainedRun(Path(config.trained))
    here = {name: check_answerer(path, f"models.{name}", config) for name, path in config.models.items()}
    if config.base is not None:
        base = run.start if run is not None and config.base == START else config.base
        here = {"base": check_answerer(base, "base", config), **here}
    heldout = load_data(config.data).heldout
    samples = (run.kept_samples(heldout) if run and config.kept_samples_only else heldout)[: config.num_samples]
    check_samples(config, samples, rewards)

    # The tokenizer of a run is that of all of its steps; it also decides which prompts the run has left out.
    readers = {**here, **({config.trained_name: run.any_checkpoint} if run and run.any_checkpoint else {})}
    forms = load_forms(config, readers, reward_model)
    fitting = fitting_samples(config, samples, forms)
    kept = run.stored_answers(config, fitting) if run and config.stored_answers and config.repeats == 1 else {}
    candidates = [
        Candidate(name=f"{config.trained_name}@{step}", kind="trained", step=step, path=path and locate(path))
        for step, path in (run.steps(config.steps, fitting, kept) if run is not None else {}).items()
    ]
    candidates += [
        Candidate(name=name, kind="base" if name == "base" else "model", path=path) for name, path in here.items()
    ]
    candidates += [Candidate(name=name, kind="endpoint") for name in endpoints]
    return EvaluationPlan(
        samples=fitting,
        too_long=len(samples) - len(fitting),
        candidates=candidates,
        stored={one.name: kept[one.step] for one in candidates if one.step in kept},
        forms={
            one.name: forms[config.trained_name if one.kind == "trained" else one.name]
            for one in candidates
            if one.path is not None
        },
        endpoints=endpoints,
        rewards=rewards,
        reward_model=reward_model,
        judges=judges,
        compared=compared_candidates(config, candidates),
        repeats=config.repeats,
        max_missing=config.max_missing,
        bucket=bucket,
    )


# -- parts of a plan ----------------------------------------------------------------------------------------------


def check_samples(config: AnsweringConfig, samples: Sequence[Sample], rewards: Rewards | None) -> None:
    """Raise DataError for samples of which something could not be measured."""
    lacking = [sample.sample_id for sample in samples if not (sample.gold or "").strip()]
    if lacking and config.needs_gold is not None:
        raise DataError(
            f"{config.needs_gold} needs a reference answer for every sample, and {len(lacking)} of {len(samples)} have "
            f"none, {lacking[0]} the first; use a data set with gold answers, or leave it out (metrics: [], rouge: "
            "false, references: false)"
        )
    if rewards is not None:
        rewards.check(samples)


def load_forms(
    config: AnsweringConfig, paths: Mapping[str, str], reward_model: RewardModelConfig | None
) -> dict[str, ChatForm]:
    """Load how each model reads conversations; a reward model reads sampled tokens, so they must be its own."""
    settings, trust = config.chat_settings, config.trust_remote_code
    forms = {name: load_form(path, settings, trust_remote_code=trust) for name, path in paths.items()}
    if reward_model is not None:
        own = load_form(reward_model.path, trust_remote_code=reward_model.trust_remote_code)
        for form in forms.values():
            require_same_tokenizer(form, own, reward_model.path, "reward_model.path")
    return forms


def prompts_with_contexts(
    config: EvaluateConfig, samples: Sequence[Sample], forms: Mapping[str, ChatForm]
) -> dict[str, list[Sample]]:
    """Return, where there are contexts, each model's samples with its context behind the prompt."""
    if not config.contexts:
        return {}
    files = {name: read_answers(Path(file), samples) for name, file in config.contexts.items()}
    for name, answers in files.items():
        count = sum(handed_over(answer.text, config.reading) is None for answer in answers.values())
        if count:
            log.warning("%d of %d contexts of %s lack the marker and are not read", count, len(samples), name)
    return {
        name: [
            prompt_with(sample, files[name][sample.sample_id].text if name in files else None, config.reading)
            for sample in samples
        ]
        for name in forms
    }


def fitting_samples(
    config: AnsweringConfig,
    samples: Sequence[Sample],
    forms: Mapping[str, ChatForm],
    prompts: Mapping[str, Sequence[Sample]] = {},
) -> list[Sample]:
    """Return the samples whose prompt is short enough for every model, so that all are measured on the same ones."""
    fitting = [
        sample
        for position, sample in enumerate(samples)
        if all(
            len(form.prompt(prompts[name][position] if prompts else sample)) <= config.max_prompt_tokens
            for name, form in forms.items()
        )
    ]
    if not fitting:
        raise DataError(
            f"all {len(samples)} held-out prompts are longer than max_prompt_tokens ({config.max_prompt_tokens}); "
            f"raise it"
        )
    return fitting


def other_answers(config: EvaluateConfig, samples: Sequence[Sample]) -> dict[str, Answers]:
    """Return the references where they are needed, and the answers of the file that models are compared with."""
    answers: dict[str, Answers] = {}
    if config.opponent == REFERENCE or (config.reward_model is not None and config.references):
        answers[REFERENCE] = {sample.sample_id: Branch(token_ids=(), text=str(sample.gold)) for sample in samples}
    if config.against_file is not None:
        answers[str(config.opponent)] = read_answers(config.against_file, samples)
    return answers


def compared_candidates(config: BenchmarkConfig, candidates: Sequence[Candidate]) -> list[str]:
    """Return those that the recipe names, else all; of the trained model one step, the last where none is named."""
    if config.preferences is None:
        return []
    names = [one.name for one in candidates]
    trained = [one.name for one in candidates if one.kind == "trained"]
    last = {config.trained_name: trained[-1]} if trained else {}
    usual = [name for name in names if name not in trained[:-1]]
    chosen = [last.get(name, name) for name in config.preferences.between] or usual
    absent = next((name for name in chosen if name not in names), None)
    if absent is not None:
        raise ConfigError(f"preferences.between names {absent!r}; there are {', '.join(names)}")
    return list(dict.fromkeys(chosen))


def answer_settings(config: AnsweringConfig, plan: EvaluationPlan, candidate: Candidate) -> list[dict[str, Any]]:
    """Return, for each repeat, everything that the answers of a model here depend on."""
    form = plan.forms[candidate.name]
    prompts = [[sample.sample_id, form.prompt(sample)] for sample in plan.prompts_of(candidate.name)]
    played = {"environment": config.environment, "agent": config.agent}
    settings = {
        "weights": weights_fingerprint(str(candidate.path)),
        "tokenizer": tokenizer_fingerprint(form.tokenizer),
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
        "max_response_tokens": config.max_response_tokens,
        **config.sampling,
        "seed": config.seed,
        "precision": config.precision,
        **{name: section.model_dump() for name, section in played.items() if section is not None},
    }
    return [{**settings, "seed": config.seed + repeat} for repeat in range(plan.repeats)]


def with_opponent(sample: Sample, other: Answers) -> Sample:
    """Return the sample with the other answer in its field `against`, for judges that see both."""
    if sample.sample_id not in other:
        return sample
    return replace(sample, fields={**sample.fields, "against": other[sample.sample_id].text})
