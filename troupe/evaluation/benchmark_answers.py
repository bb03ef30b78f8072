"""Everybody's answers in a benchmark: endpoints all at once, models here one after the other, and what is on disk from neither."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from troupe.config.evaluation import BenchmarkConfig
from troupe.evaluation.benchmark_results import Contestant, Taken
from troupe.evaluation.candidates import Entrants
from troupe.evaluation.endpoint_answers import AnsweringEndpoint
from troupe.evaluation.generation import evaluation_cluster, generate_repeatedly
from troupe.evaluation.plan import answer_settings
from troupe.evaluation.stored_answers import AnswerLog, Answers, AnswerStore, text_branch

log = logging.getLogger(__name__)

Rounds = Mapping[str, Sequence[Answers]]
"""A model's name -> its answers, once for each repeat; an answer that could not be had is not among them."""


def everybodys_answers(config: BenchmarkConfig, entrants: Entrants, directory: Path) -> dict[str, list[Answers]]:
    """The endpoints' answers, all endpoints at once; then those of the models here, one model after the other."""
    answers: dict[str, list[Answers]] = {name: [given] for name, given in entrants.stored.items()}
    asyncio.run(ask_endpoints(config, entrants, directory))
    for name, endpoint in entrants.endpoints.items():
        rows = read_rows(config, entrants, endpoint, directory)
        answers[name] = [
            {row["sample_id"]: text_branch(row) for row in rows if row["repeat"] == repeat and row["text"] is not None}
            for repeat in range(config.repeats)
        ]
    return {**answers, **answers_made_here(config, entrants, AnswerStore(directory))}


async def ask_endpoints(config: BenchmarkConfig, entrants: Entrants, directory: Path) -> None:
    await asyncio.gather(
        *(
            endpoint.answer_all(entrants.samples, config.repeats, AnswerLog(directory, name))
            for name, endpoint in entrants.endpoints.items()
        )
    )


def read_rows(
    config: BenchmarkConfig, entrants: Entrants, endpoint: AnsweringEndpoint, directory: Path
) -> list[dict[str, Any]]:
    asked = [endpoint.question(sample, repeat) for sample in entrants.samples for repeat in range(config.repeats)]
    return AnswerLog(directory, endpoint.name).rows(asked)


def answers_made_here(config: BenchmarkConfig, entrants: Entrants, store: AnswerStore) -> dict[str, list[Answers]]:
    """Of every model with weights whose answers no file holds; engines of one are gone before the next one's start."""
    ids = [sample.sample_id for sample in entrants.samples]
    seeds = [config.seed + repeat for repeat in range(config.repeats)]
    answers: dict[str, list[Answers]] = {}
    asked: dict[str, list[dict[str, Any]]] = {}
    for one in entrants.contestants:
        if one.path is None or one.name in entrants.stored:
            continue
        usual = answer_settings(config, one.path, entrants.samples, entrants.tokenizers[one.name])
        settings = [{**usual, "seed": seed} for seed in seeds]
        kept = [store.read(round_name(one.name, i), ids, settings[i]) for i in range(config.repeats)]
        found = [answer for answer in kept if answer is not None]
        if len(found) == config.repeats:
            answers[one.name] = list(found)
        else:
            asked[one.name] = settings
    if not asked:
        return answers
    paths = {one.name: str(one.path) for one in entrants.contestants}
    with evaluation_cluster(config) as cluster:
        for name, settings in asked.items():
            log.info("%s answers %d prompts", name, len(ids))
            made = generate_repeatedly(
                cluster, config, paths[name], entrants.samples, entrants.tokenizers[name], seeds=seeds
            )
            for repeat, given in enumerate(made):
                store.write(round_name(name, repeat), given, settings[repeat])
            answers[name] = list(made)
    return answers


def round_name(name: str, repeat: int) -> str:
    return name if repeat == 0 else f"{name}.{repeat}"


def summed_up(config: BenchmarkConfig, entrants: Entrants, one: Contestant, directory: Path) -> Taken:
    """What a model's answers took, over all calls of the job."""
    wanted = len(entrants.samples) * config.repeats
    if one.name not in entrants.endpoints:
        source = "the run's own answers" if one.name in entrants.stored else "answered here"
        return Taken(wanted=wanted, answered=wanted, source=source)
    rows = read_rows(config, entrants, entrants.endpoints[one.name], directory)
    return Taken.of_rows(rows, wanted=wanted, max_missing=config.max_missing)
