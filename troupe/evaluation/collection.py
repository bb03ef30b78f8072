"""Collecting answers: those on disk are read, endpoints answer all at once, models here one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from troupe.config.evaluation import AnsweringConfig
from troupe.evaluation.endpoint_answers import AnsweringEndpoint
from troupe.evaluation.generation import evaluation_cluster, generate, reward_scores
from troupe.evaluation.plan import Candidate, EvaluationPlan, answer_settings
from troupe.evaluation.stored_answers import AnswerLog, Answers, AnswersByRepeat, AnswerStore, text_branch

log = logging.getLogger(__name__)

RewardsByRepeat = Mapping[tuple[str, int], Mapping[str, float]]
"""(name, repeat) -> sample_id -> the reward model's score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Calls and tokens of a candidate's answers, over all calls of the job."""

    wanted: int
    answered: int
    source: str = "endpoint"
    calls: int = 0
    failed_calls: int = 0
    """Calls that brought no answer, those that were tried again with success among them."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    remark: str | None = None
    """Why it is not measured; None where it is."""

    @property
    def missing(self) -> int:
        return self.wanted - self.answered

    def as_dict(self) -> dict[str, Any]:
        """Return the content of benchmark.json."""
        return {**asdict(self), "missing": self.missing}


def collect_answers(
    config: AnsweringConfig, plan: EvaluationPlan, directory: Path
) -> tuple[AnswersByRepeat, RewardsByRepeat]:
    """Return the answers of every candidate, and the reward model's scores of them once every engine is gone.

    Each answer is written to `directory` before anything else happens, so a second call goes on from there.
    """
    answers: dict[tuple[str, int], Answers] = {(name, 0): given for name, given in plan.stored.items()}
    answers |= answers_of_endpoints(plan, directory)
    store = AnswerStore(directory)
    ids = [sample.sample_id for sample in plan.samples]
    settings = {
        one: answer_settings(config, plan, one)
        for one in plan.candidates
        if one.path is not None and one.name not in plan.stored
    }
    for one, settings_of_each in settings.items():
        for repeat, wanted in enumerate(settings_of_each):
            known = store.read(file_name(one.name, repeat), ids, wanted)
            answers |= {} if known is None else {(one.name, repeat): known}
    missing = [one for one in settings if any((one.name, repeat) not in answers for repeat in range(plan.repeats))]
    if not missing and plan.reward_model is None:
        return answers, {}
    with evaluation_cluster(config) as cluster:
        for one in missing:
            samples = plan.prompts_of(one.name)
            log.info("%s answers %d prompts", one.name, len(samples))
            seeds = [each["seed"] for each in settings[one]]
            made = generate(cluster, config, str(one.path), samples, plan.forms[one.name], seeds=seeds)
            for repeat, given in enumerate(made):
                store.write(file_name(one.name, repeat), given, settings[one][repeat])
                answers[one.name, repeat] = given
        if plan.reward_model is None:
            return answers, {}
        log.info("%s scores the answers", plan.reward_model.path)
        return answers, reward_scores(cluster, config, plan.reward_model, plan.samples, answers)


def file_name(name: str, repeat: int) -> str:
    return name if repeat == 0 else f"{name}.{repeat}"


def answers_of_endpoints(plan: EvaluationPlan, directory: Path) -> dict[tuple[str, int], Answers]:
    """Return what the endpoints answer, and have answered; an answer that could not be had is left out."""

    async def ask_all() -> None:
        await asyncio.gather(
            *(
                endpoint.answer_all(plan.samples, plan.repeats, AnswerLog(directory, name))
                for name, endpoint in plan.endpoints.items()
            )
        )

    asyncio.run(ask_all())
    return {
        (name, repeat): {
            row["sample_id"]: text_branch(row)
            for row in logged_rows(plan, endpoint, directory)
            if row["repeat"] == repeat and row["text"] is not None
        }
        for name, endpoint in plan.endpoints.items()
        for repeat in range(plan.repeats)
    }


def logged_rows(plan: EvaluationPlan, endpoint: AnsweringEndpoint, directory: Path) -> list[dict[str, Any]]:
    questions = [endpoint.question(sample, repeat) for sample in plan.samples for repeat in range(plan.repeats)]
    return AnswerLog(directory, endpoint.name).rows(questions)


def usage_of(plan: EvaluationPlan, one: Candidate, directory: Path) -> Usage:
    """Return what a candidate's answers took; where too many are missing it has a remark."""
    wanted = len(plan.samples) * plan.repeats
    if one.name in plan.endpoints:
        rows = logged_rows(plan, plan.endpoints[one.name], directory)
        return usage_of_rows(rows, wanted=wanted, max_missing=plan.max_missing)
    source = (
        {"file": "a file", "trained": "the run's own answers"}[one.kind] if one.name in plan.stored else "answered here"
    )
    return Usage(wanted=wanted, answered=wanted, source=source)


def usage_of_rows(rows: Sequence[Mapping[str, Any]], *, wanted: int, max_missing: float) -> Usage:
    """Sum up an answer log's lines; a question that failed in one call and came in the next is answered."""
    answered = len({row["question"] for row in rows if row["text"] is not None})
    remark = None
    if wanted - answered > max_missing * wanted or not answered:
        reasons = [str(row["reason"]) for row in rows if row.get("reason")]
        last = f": {reasons[-1]}" if reasons else ""
        remark = f"{wanted - answered} of {wanted} answers are missing{last}"
    sums = {
        name: sum(row[name] for row in rows)
        for name in ("calls", "failed_calls", "prompt_tokens", "completion_tokens", "cost")
    }
    return Usage(wanted=wanted, answered=answered, remark=remark, **sums)
