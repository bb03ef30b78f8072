"""From requests to groups: what rollouts and evaluations ask, whether an answer is one turn or a whole game."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from troupe.actors.generator import Request
from troupe.actors.generators import Generators
from troupe.processes.futures import then
from troupe.records import Branch, Group, Sample, Score


class Answers(Protocol):
    """A source of answers to prompts: `SingleTurns`, or `troupe.training.episodes.Episodes`."""

    def submit(
        self, requests: Sequence[Request], samples: Sequence[Sample], *, alone: bool = True
    ) -> list[Future[Group]]:
        """Start a batch, a request per sample; each future is the complete group (`alone`: `Generators.submit`)."""


class SingleTurns:
    """One answer of the model is the whole branch."""

    def __init__(self, generators: Generators) -> None:
        self._generators = generators

    def submit(
        self, requests: Sequence[Request], samples: Sequence[Sample], *, alone: bool = True
    ) -> list[Future[Group]]:
        answers = self._generators.submit(requests, alone=alone)
        return [
            then(branches, functools.partial(_group, sample, request.prompt_ids))
            for branches, sample, request in zip(answers, samples, requests, strict=True)
        ]


def _group(sample: Sample, prompt_ids: Sequence[int], branches: Sequence[Branch]) -> Group:
    return Group(sample=sample, prompt_ids=prompt_ids, branches=branches)


def with_outcomes(scored: Group) -> Group:
    """Return the scored group, with what an environment gave for each branch added to its score."""
    scores = [with_outcome(branch, score) for branch, score in zip(scored.branches, scored.scores, strict=True)]
    return scored.with_scores(scores)


def with_outcome(branch: Branch, score: Score) -> Score:
    """Return the score of a branch, an environment's included."""
    outcome = branch.outcome
    if outcome is None:
        return score
    value = None if outcome.value is None or score.value is None else outcome.value + score.value
    return replace(score, value=value, parts={**outcome.parts, **score.parts})
