"""Strengths from pairwise comparisons (Bradley and Terry 1952), by maximum likelihood, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy

from troupe.statistics import RESAMPLES, Estimate, interval

Array = numpy.ndarray[Any, numpy.dtype[Any]]
Ties = Literal["half", "drop"]

PRIOR = 0.5
"""Wins that every model is lent over every other one where the counts alone have no finite answer."""
TOLERANCE = 1e-10
MOST_ROUNDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """A judgement of two answers to one prompt."""

    prompt: str
    """The sample's id: judgements of one prompt are drawn together by the bootstrap."""
    first: str
    second: str
    value: float
    """1: the first is better, 0: the second is, 0.5: as good, or a judge that contradicted itself."""

    @property
    def outcome(self) -> float:
        """A win is a win however sure the judge was: 1, 0.5 or 0."""
        return 0.5 if self.value == 0.5 else float(self.value > 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """M models compared with each other."""

    strengths: Mapping[str, Estimate]
    """Model -> s >= 0; they add up to 1."""
    preferences: Mapping[tuple[str, str], Estimate]
    """(a, b) -> s_a / (s_a + s_b), the probability that a is preferred."""
    separated: bool
    """Whether a model won everything, or was never compared, so that the prior bounds the strengths."""


def strengths(duels: Sequence[Duel], *, ties: Ties = "half", prior: float = PRIOR, seed: int = 0) -> Strengths:
    """Return the models' strengths with 95 % bootstrap intervals over prompts.

    `ties`: half a win for each, or left out. Raises ValueError for no duels, or for a model against itself.
    """
    if not duels:
        raise ValueError("strengths need at least one comparison")
    names = sorted({name for duel in duels for name in (duel.first, duel.second)})
    table = _wins_by_prompt(duels, names, ties)  # [P, M, M]
    observed = table.sum(axis=0)
    found = fit(observed, prior=prior)
    rng = numpy.random.default_rng(seed)
    drawn = rng.multinomial(len(table), numpy.full(len(table), 1 / len(table)), size=RESAMPLES)  # [R, P]
    resampled = fit(numpy.tensordot(drawn.astype(float), table, axes=1), prior=prior)  # [R, M]

    def estimate(value: float, values: Array) -> Estimate:
        low, high = interval(values)
        return Estimate(mean=value, low=low, high=high)

    return Strengths(
        strengths={name: estimate(float(found[i]), resampled[:, i]) for i, name in enumerate(names)},
        preferences={
            (a, b): estimate(
                float(found[i] / (found[i] + found[j])), resampled[:, i] / (resampled[:, i] + resampled[:, j])
            )
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i != j
        },
        separated=not bool(_has_finite_answer(observed)),
    )


def fit(wins: Array, *, prior: float = PRIOR) -> Array:
    """Return the strengths [..., M] that make the wins [..., M, M] (row over column) most likely; each adds up to 1.

    Hunter's (2004) minorisation-maximisation: s_i <- wins of i / sum_j n_ij / (s_i + s_j), which never lowers the
    likelihood. A maximum exists when, however the models are split in two, each side has beaten the other (Ford 1957).
    Where it does not, `prior` wins are added in both directions of every pair: a model that won 10 of 10 then has
    10.5 / 11.

    >>> fit(numpy.array([[0.0, 3.0], [1.0, 0.0]])).round(3).tolist()  # 3 of 4
    [0.75, 0.25]
    >>> fit(numpy.array([[0.0, 10.0], [0.0, 0.0]]), prior=0.5).round(4).tolist()  # 10.5 of 11
    [0.9545, 0.0455]
    """
    wins = numpy.asarray(wins, dtype=float)
    count = wins.shape[-1]
    lent = prior * (1 - numpy.eye(count))
    wins = numpy.where(_has_finite_answer(wins)[..., None, None], wins, wins + lent)
    won, played = wins.sum(axis=-1), wins + wins.swapaxes(-1, -2)
    found = numpy.full(won.shape, 1 / count)
    for _ in range(MOST_ROUNDS):
        updated = won / (played / (found[..., :, None] + found[..., None, :])).sum(axis=-1)
        updated /= updated.sum(axis=-1, keepdims=True)
        done = numpy.allclose(updated, found, rtol=TOLERANCE, atol=0)
        found = updated
        if done:
            break
    return found


def _has_finite_answer(wins: Array) -> Array:
    """Return [...]: whether every model has beaten every other, directly or through others."""
    count = wins.shape[-1]
    reached = (wins > 0) | numpy.eye(count, dtype=bool)
    for _ in range(count.bit_length()):  # paths of doubled length
        reached = numpy.matmul(reached.astype(int), reached.astype(int)) > 0
    return numpy.asarray(reached.all(axis=(-1, -2)))


def _wins_by_prompt(duels: Sequence[Duel], names: Sequence[str], ties: Ties) -> Array:
    """Return [P, M, M]: on prompt p, how often row was better than column; sorted, so that order means nothing."""
    places = {name: index for index, name in enumerate(names)}
    prompts = {prompt: index for index, prompt in enumerate(sorted({duel.prompt for duel in duels}))}
    table = numpy.zeros((len(prompts), len(names), len(names)))
    for duel in duels:
        if duel.first == duel.second:
            raise ValueError(f"{duel.first} is compared with itself on {duel.prompt}")
        if duel.outcome == 0.5 and ties == "drop":
            continue
        first, second = places[duel.first], places[duel.second]
        table[prompts[duel.prompt], first, second] += duel.outcome
        table[prompts[duel.prompt], second, first] += 1 - duel.outcome
    return table
