"""What follows from pairwise judgements: strengths, preferences and win rates, over everything and by genre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from troupe.evaluation.bradley_terry import Duel, Ties, strengths
from troupe.evaluation.evaluation_tables import ResultTable, cell
from troupe.statistics import Estimate, estimate_mean


def summary(duels: Sequence[Duel], *, genres: Mapping[str, str], ties: Ties, seed: int) -> dict[str, Any]:
    """Of one dimension, as JSON: strengths, and for each ordered pair its preference and win rates.

    `genres`: prompt -> genre, of those that have one.
    """
    if not duels:
        return {"judgements": 0}
    found = strengths(duels, ties=ties, seed=seed)
    pairs = {}
    for (first, second), preference in found.preferences.items():
        met = _seen_from(first, second, duels)
        if not met:
            continue
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
    """(prompt, 1 where `first` is better than `second`, 0.5 as good, 0 worse)."""
    met = [(duel.prompt, duel.outcome) for duel in duels if (duel.first, duel.second) == (first, second)]
    return met + [(duel.prompt, 1 - duel.outcome) for duel in duels if (duel.second, duel.first) == (first, second)]


def _rates(outcomes: Sequence[float], seed: int) -> dict[str, Any]:
    """wins / (wins + ties + losses), and the same of ties and losses."""
    shares = {
        name: asdict(estimate_mean([float(outcome == value) for outcome in outcomes], seed=seed))
        for name, value in (("win_rate", 1.0), ("tie_rate", 0.5), ("loss_rate", 0.0))
    }
    return {"samples": len(outcomes), **shares}


def preference_tables(results: Mapping[str, Mapping[str, Any]]) -> list[ResultTable]:
    """Strengths by dimension; preferences and win rates of every pair; win rates by genre where there are some."""
    compared = {name: result for name, result in results.items() if result["judgements"]}
    if not compared:
        return []
    models = dict.fromkeys(model for result in compared.values() for model in result["strengths"])
    pairs = dict.fromkeys(pair for result in compared.values() for pair in result["pairs"])
    genres = dict.fromkeys(
        genre for result in compared.values() for one in result["pairs"].values() for genre in one["genres"]
    )

    def row(read: Any) -> list[str]:
        return [cell(_estimate(read(result))) for result in compared.values()]

    tables = [
        ResultTable(
            title="Strength (Bradley-Terry, adds up to 1)",
            columns=list(compared),
            rows={model: row(lambda result, m=model: result["strengths"].get(m)) for model in models},
        ),
        ResultTable(
            title="Preference, s_A / (s_A + s_B)",
            columns=list(compared),
            rows={pair: row(lambda result, p=pair: result["pairs"].get(p, {}).get("preference")) for pair in pairs},
        ),
        ResultTable(
            title="Win rate, A / (A + same + B)",
            columns=list(compared),
            rows={pair: row(lambda result, p=pair: result["pairs"].get(p, {}).get("win_rate")) for pair in pairs},
        ),
    ]
    for dimension, result in compared.items() if genres else ():
        rows = {
            pair: [cell(_estimate(one["genres"].get(genre, {}).get("win_rate"))) for genre in genres]
            for pair, one in result["pairs"].items()
        }
        tables.append(ResultTable(title=f"Win rate by genre: {dimension}", columns=list(genres), rows=rows))
    return tables


def _estimate(numbers: Mapping[str, float] | None) -> Estimate | None:
    return None if numbers is None else Estimate(**numbers)
