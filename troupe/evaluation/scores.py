"""Scores of answers: reward functions, the reward model, lengths; a row for each answer and means over samples."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from troupe.chat import prompt_text
from troupe.config.evaluation import REFERENCE, REWARD_MODEL, AnsweringConfig
from troupe.evaluation.checkpoint_sources import UNKNOWN
from troupe.evaluation.collection import RewardsByRepeat
from troupe.evaluation.estimates import estimate_columns, means_by_sample
from troupe.evaluation.plan import EvaluationPlan, with_opponent
from troupe.evaluation.stored_answers import AnswersByRepeat
from troupe.records import Branch, Group, Score
from troupe.statistics import Estimate, estimate_difference
from troupe.training.sampled_answers import with_outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The scores of every answer: (name, repeat) -> sample_id -> score."""

    rewards: RewardsByRepeat
    """The reward model's; empty without one."""
    functions: Mapping[tuple[str, int], Mapping[str, Score]]
    """The reward functions', with what an environment gave."""

    def judged(self, judge: str, name: str) -> dict[str, float]:
        """Return sample_id -> the judge's number, where there is one."""
        if judge == REWARD_MODEL:
            return dict(self.rewards[name, 0])
        scores = self.functions[name, 0]
        return {sample_id: score.parts[judge] for sample_id, score in scores.items() if judge in score.parts}


def function_scores(
    config: AnsweringConfig, plan: EvaluationPlan, answers: AnswersByRepeat
) -> dict[tuple[str, int], dict[str, Score]]:
    """Score every answer with the reward functions, and the references where models are compared with them."""
    names = {*(one.name for one in plan.candidates), *([REFERENCE] if config.scores_references else [])}
    given = [
        (key, sample, answers[key][sample.sample_id])
        for key in answers
        if key[0] in names
        for sample in plan.samples
        if sample.sample_id in answers[key]
    ]
    found = [[Score(value=0.0)]] * len(given)
    if plan.rewards is not None:
        other = answers[config.opponent, 0] if config.opponent is not None else {}
        groups = [
            Group(sample=with_opponent(sample, other), prompt_ids=(), branches=[branch]) for _, sample, branch in given
        ]
        found = asyncio.run(plan.rewards.score_all(groups, config.max_concurrency))
    scores: dict[tuple[str, int], dict[str, Score]] = {key: {} for key in answers}
    for (key, sample, branch), (score,) in zip(given, found, strict=True):
        scores[key][sample.sample_id] = with_outcome(branch, score)
    return scores


# -- a row for each answer ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """One answer and what was measured of it."""

    sample_id: str
    prompt: str
    reference: str | None
    prediction: str
    finish_reason: str
    repeat: int = 0
    """Which of several answers to the sample."""
    score_prediction: float | None = None
    """The reward model's score of the answer."""
    score_reference: float | None = None
    """And of the reference, None where the reward model does not score it."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """A judgement that is missing is not in it."""


def answer_rows(plan: EvaluationPlan, name: str, answers: AnswersByRepeat, scores: Scores) -> list[AnswerRow]:
    """Return a row for every answer of a candidate, in the order of the data."""
    references = scores.rewards.get((REFERENCE, 0), {})
    rows = []
    for sample in plan.samples:
        for repeat in range(plan.repeats):
            key, branch = (name, repeat), answers.get((name, repeat), {}).get(sample.sample_id)
            if branch is not None:
                rows.append(
                    AnswerRow(
                        sample_id=sample.sample_id,
                        prompt=prompt_text(sample),
                        reference=sample.gold,
                        prediction=branch.text,
                        finish_reason=branch.finish_reason,
                        repeat=repeat,
                        score_prediction=scores.rewards.get(key, {}).get(sample.sample_id),
                        score_reference=references.get(sample.sample_id),
                        metrics={**scores.functions[key][sample.sample_id].parts, **lengths(branch)},
                    )
                )
    return rows


def lengths(branch: Branch) -> dict[str, float]:
    """Return the words; where they are known also tokens, and whether the answer was cut."""
    found = {"response_words": float(num_words(branch))}
    if branch.finish_reason != UNKNOWN:
        found["truncated_fraction"] = float(branch.truncated)
    return {**found, "response_tokens": float(branch.num_sampled)} if branch.token_ids else found


def num_words(branch: Branch) -> int:
    return len(branch.text.split())


def estimate_metrics(rows: Sequence[AnswerRow], *, seed: int) -> dict[str, Estimate]:
    """Return means over the samples that have the metric; differences over those that have both scores.

    Several answers to a sample count as their mean, so that an interval is over samples.
    """
    models = {"reward": "score_prediction", "reward_reference": "score_reference"}
    values = [{**row.metrics, **{name: getattr(row, column) for name, column in models.items()}} for row in rows]
    by_sample = means_by_sample([row.sample_id for row in rows], values)
    measured = estimate_columns(by_sample, seed=seed)
    both = by_sample.reindex(columns=list(models)).dropna()
    if len(both):
        measured["reward_difference"] = estimate_difference(*(both[name].to_numpy() for name in models), seed=seed)
    return measured
