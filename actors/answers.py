"""From requests to groups: what rollouts and evaluations ask, whether an answer is one turn or a whole game."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from actors.generator import Generators, Request
from core.records import Branch, Group, Sample


class Answers(Protocol):
    """Whoever continues prompts: `SingleTurns`, or `actors.episodes.Episodes`."""

    def submit(
        self, requests: Sequence[Request], samples: Sequence[Sample], *, alone: bool = True
    ) -> list[Future[Group]]:
        """Start a batch, a request per sample; each future holds the sample's group as soon as it is complete.

        A group that an environment has judged has its scores already. `alone`: see `Generators.submit`.
        """


class SingleTurns:
    """One answer of the model is the whole branch."""

    def __init__(self, generators: Generators) -> None:
        self._generators = generators

    def submit(
        self, requests: Sequence[Request], samples: Sequence[Sample], *, alone: bool = True
    ) -> list[Future[Group]]:
        answers = self._generators.submit(requests, alone=alone)
        return [
            _group(branches, sample, request.prompt_ids)
            for branches, sample, request in zip(answers, samples, requests, strict=True)
        ]


def _group(branches: Future[list[Branch]], sample: Sample, prompt_ids: Sequence[int]) -> Future[Group]:
    group: Future[Group] = Future()

    def settle(finished: Future[list[Branch]]) -> None:
        error = finished.exception()
        if error is not None:
            group.set_exception(error)
        else:
            group.set_result(Group(sample=sample, prompt_ids=prompt_ids, branches=finished.result()))

    branches.add_done_callback(settle)
    return group
