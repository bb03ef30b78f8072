"""Every pair of models compared by a judge on the same prompts: strengths, preferences and win rates, also by genre."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from troupe.config.evaluation import PreferencesConfig
from troupe.errors import RewardError
from troupe.evaluation.bradley_terry import Duel, Ties, strengths
from troupe.evaluation.evaluation_tables import ResultTable, cell
from troupe.evaluation.plan import with_opponent
from troupe.evaluation.stored_answers import Answers
from troupe.records import Group, Sample, Score
from troupe.rewards.build import Rewards
from troupe.statistics import Estimate, estimate_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """The judgements of all pairs of answers and what follows from them."""

    results: Mapping[str, Mapping[str, Any]]
    """Dimension -> strengths and pairs, as `summarize` returns them."""
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
) -> Preferences:
    """Judge every pair of the models in `answers` on the samples that both answered."""
    met = [
        (first, second, sample)
        for first, second in itertools.combinations(answers, 2)
        for sample in samples[: settings.num_samples]
        if sample.sample_id in answers[first] and sample.sample_id in answers[second]
    ]
    log.info("%d pairs of answers are compared by %s", len(met), ", ".join(settings.dimensions))
    groups = [
        Group(sample=with_opponent(sample, answers[second]), prompt_ids=(), branches=[answers[first][sample.sample_id]])
        for first, second, sample in met
        if _is_text(answers[second], sample)
    ]
    scores = iter(asyncio.run(judges.score_all(groups, max_concurrency)))
    lines: list[dict[str, Any]] = []
    missing = 0
    for first, second, sample in met:
        if _is_text(answers[second], sample):
            values = _values(next(scores)[0], settings, sample)
        else:  # an empty answer loses without a question to the judge; two of them are as good
            values = dict.fromkeys(settings.dimensions, 1.0 if _is_text(answers[first], sample) else 0.5)
        missing += len(settings.dimensions) - len(values)
        genre = sample.fields.get(settings.genre_field) if settings.genre_field is not None else None
        lines.append({"first": first, "second": second, "sample_id": sample.sample_id, "genre": genre, **values})
    genres = {line["sample_id"]: str(line["genre"]) for line in lines if line["genre"] is not None}
    results = {
        dimension: summarize(_duels(lines, dimension), genres=genres, ties=settings.ties, seed=seed)
        for dimension in settings.dimensions
    }
    return Preferences(results=results, lines=lines, missing=missing)


def _is_text(answers: Answers, sample: Sample) -> bool:
    return bool(answers[sample.sample_id].text.strip())


def _values(score: Score, settings: PreferencesConfig, sample: Sample) -> dict[str, float]:
    """Return dimension -> the judge's value, without those that are missing."""
    values = {name: score.parts[name] for name in settings.dimensions if name in score.parts}
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise RewardError(
                f"the judge {settings.judge.fn} said {value:g} of {name} on sample {sample.sample_id}; a comparison is "
                "1 (better), 0.5 (as good) or 0 (worse)"
            )
    return values


def _duels(lines: Sequence[Mapping[str, Any]], dimension: str) -> list[Duel]:
    return [
        Duel(prompt=line["sample_id"], first=line["first"], second=line["second"], value=line[dimension])
        for line in lines
        if dimension in line
    ]


# -- what follows from the judgements -----------------------------------------------------------------------------


def summarize(duels: Sequence[Duel], *, genres: Mapping[str, str], ties: Ties, seed: int) -> dict[str, Any]:
    """Return strengths, and preference and win rates of each ordered pair, also by `genres` (prompt -> genre)."""
    if not duels:
        return {"judgements": 0}
    found = strengths(duels, ties=ties, seed=seed)
    pairs = {}
    for (first, second), preference in found.preferences.items():
        met = _seen_from(first, second, duels)
        if met:
            by_genre = sorted({genres[prompt] for prompt, _ in met if prompt in genres})
            pairs[f"{first} over {second}"] = {
                "preference": asdict(preference),
                **_rates([outcome for _, outcome in met], seed),
                "genres": {
                    genre: _rates([outcome for prompt, outcome in met if genres.get(prompt) == genre], seed)
                    for genre in by_genre
                },
            }
    return {
        "judgements": len(duels),
        "separated": found.separated,
        "strengths": {name: asdict(estimate) for name, estimate in found.strengths.items()},
        "pairs": pairs,
    }


def _seen_from(first: str, second: str, duels: Sequence[Duel]) -> list[tuple[str, float]]:
    """Return (prompt, 1 where `first` is better than `second`, 0.5 as good, 0 worse)."""
    met = [(duel.prompt, duel.outcome) for duel in duels if (duel.first, duel.second) == (first, second)]
    return met + [(duel.prompt, 1 - duel.outcome) for duel in duels if (duel.second, duel.first) == (first, second)]


def _rates(outcomes: Sequence[float], seed: int) -> dict[str, Any]:
    """Return wins / (wins + ties + losses), and the same of ties and losses."""
    shares = {
        name: asdict(estimate_mean([float(outcome == value) for outcome in outcomes], seed=seed))
        for name, value in (("win_rate", 1.0), ("tie_rate", 0.5), ("loss_rate", 0.0))
    }
    return {"samples": len(outcomes), **shares}


def preference_tables(results: Mapping[str, Mapping[str, Any]]) -> list[ResultTable]:
    """Return strengths, preferences and win rates by dimension, and win rates by genre where there are some."""
    compared = {name: result for name, result in results.items() if result["judgements"]}
    models = dict.fromkeys(model for result in compared.values() for model in result["strengths"])
    pairs = dict.fromkeys(pair for result in compared.values() for pair in result["pairs"])

    def table(title: str, names: Mapping[str, None], read: Callable[[Mapping[str, Any], str], Any]) -> ResultTable:
        rows = {name: [_cell(read(result, name)) for result in compared.values()] for name in names}
        return ResultTable(title=title, columns=list(compared), rows=rows)

    def of_pair(key: str) -> Callable[[Mapping[str, Any], str], Any]:
        return lambda result, pair: result["pairs"].get(pair, {}).get(key)

    strength = "Strength (Bradley-Terry, adds up to 1)"
    tables = [
        table(strength, models, lambda result, model: result["strengths"].get(model)),
        table("Preference, s_A / (s_A + s_B)", pairs, of_pair("preference")),
        table("Win rate, A / (A + same + B)", pairs, of_pair("win_rate")),
    ]
    genres = dict.fromkeys(
        genre for one in compared.values() for pair in one["pairs"].values() for genre in pair["genres"]
    )
    for dimension, result in compared.items() if genres else ():
        rows = {
            pair: [_cell(one["genres"].get(genre, {}).get("win_rate")) for genre in genres]
            for pair, one in result["pairs"].items()
        }
        tables.append(ResultTable(title=f"Win rate by genre: {dimension}", columns=list(genres), rows=rows))
    return tables if compared else []


def _cell(numbers: Mapping[str, float] | None) -> str:
    return cell(None if numbers is None else Estimate(**numbers))
