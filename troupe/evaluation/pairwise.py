"""Every pair of models compared by a judge on the same prompts: who is better in which respect."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from troupe.config.evaluation import PreferencesConfig
from troupe.errors import RewardError
from troupe.evaluation.bradley_terry import Duel
from troupe.evaluation.plan import with_opponent
from troupe.evaluation.preferences import summary
from troupe.evaluation.stored_answers import Answers
from troupe.records import Group, Sample, Score
from troupe.rewards.build import Rewards

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What the judge said."""

    results: Mapping[str, Mapping[str, Any]]
    """Dimension -> strengths and pairs, as troupe.evaluation.preferences makes them."""
    lines: Sequence[Mapping[str, Any]]
    """A line for preferences.jsonl for every two answers: both names, the sample, and the value by dimension."""
    missing: int
    """Judgements that could not be had; they are left out."""


def compare_pairs(
    settings: PreferencesConfig,
    samples: Sequence[Sample],
    answers: Mapping[str, Answers],
    judges: Rewards,
    *,
    max_concurrency: int,
    seed: int,
) -> Verdicts:
    """Judge every pair of the models in `answers` on the samples that both answered."""
    samples = samples[: settings.num_samples]
    met = [
        (first, second, sample)
        for first, second in itertools.combinations(answers, 2)
        for sample in samples
        if sample.sample_id in answers[first] and sample.sample_id in answers[second]
    ]
    log.info("%d pairs of answers are compared by %s", len(met), ", ".join(settings.dimensions))
    asked = [
        Group(sample=with_opponent(sample, answers[second]), prompt_ids=(), branches=[answers[first][sample.sample_id]])
        for first, second, sample in met
        if _is_text(answers[second], sample)
    ]
    scores = iter(asyncio.run(judges.score_all(asked, max_concurrency)))
    lines: list[dict[str, Any]] = []
    missing = 0
    for first, second, sample in met:
        if _is_text(answers[second], sample):
            values = _values(next(scores)[0], settings, sample)
        else:  # an empty answer loses, unasked; two of them are as good
            values = dict.fromkeys(settings.dimensions, 1.0 if _is_text(answers[first], sample) else 0.5)
        missing += len(settings.dimensions) - len(values)
        genre = sample.fields.get(settings.genre_field) if settings.genre_field is not None else None
        lines.append({"first": first, "second": second, "sample_id": sample.sample_id, "genre": genre, **values})
    genres = {line["sample_id"]: str(line["genre"]) for line in lines if line["genre"] is not None}
    results = {
        dimension: summary(_duels(lines, dimension), genres=genres, ties=settings.ties, seed=seed)
        for dimension in settings.dimensions
    }
    return Verdicts(results=results, lines=lines, missing=missing)


def _is_text(answers: Answers, sample: Sample) -> bool:
    return bool(answers[sample.sample_id].text.strip())


def _values(score: Score, settings: PreferencesConfig, sample: Sample) -> dict[str, float]:
    """Dimension -> the judge's value, without those that are missing."""
    values = {name: score.parts[name] for name in settings.dimensions if name in score.parts}
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise RewardError(
                f"the judge {settings.judge.fn} said {value:g} of {name} on sample {sample.sample_id}; a comparison is 1 (better), "
                "0.5 (as good) or 0 (worse)"
            )
    return values


def _duels(lines: Sequence[Mapping[str, Any]], dimension: str) -> list[Duel]:
    return [
        Duel(prompt=line["sample_id"], first=line["first"], second=line["second"], value=line[dimension])
        for line in lines
        if dimension in line
    ]
