"""Benchmark a run's checkpoints against its base model and other models on one validation split.

    python jobs/benchmark.py configs/benchmarks/quickstart.yaml trained=runs/quickstart
    python jobs/benchmark.py trained=runs/x 'endpoints.gpt={base_url: "https://api.openai.com/v1", model: gpt-4o}'

Everybody answers the same held-out prompts; then the answers are scored. Every answer is on disk at once, so that a
second call goes on from there and pays for nothing twice. docs/evaluation.md says what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.config.evaluation import BenchmarkConfig
from troupe.config.loader import dump_config
from troupe.config.program import run_program
from troupe.evaluation.benchmark_answers import Rounds, everybodys_answers, summed_up
from troupe.evaluation.benchmark_results import Results, Taken, write_results
from troupe.evaluation.candidates import Entrants, prepare
from troupe.evaluation.checkpoint_sources import run_of
from troupe.evaluation.evaluation_tables import AnswerRow, build_answer_row, print_tables
from troupe.evaluation.generation import evaluation_cluster, reward_scores
from troupe.evaluation.pairwise import Verdicts, compare_pairs
from troupe.files import now, read_json, to_json, write_atomically
from troupe.records import Group, Score
from troupe.report.report_benchmark import build_benchmark_report
from troupe.report.trackers import log_evaluation
from troupe.runs.run_directory import environment, locked
from troupe.secrets import public_values

log = logging.getLogger(__name__)


def benchmark(config: BenchmarkConfig) -> None:
    output = output_directory(config)
    entrants = prepare(config)
    with locked(output), status(output, config):
        answers = everybodys_answers(config, entrants, output / "generated")
        taken = {one.name: summed_up(config, entrants, one, output / "generated") for one in entrants.contestants}
        rewards = model_scores(config, entrants, answers)
        rows = scored_rows(config, entrants, answers, rewards)
        verdicts = preferences(config, entrants, answers, taken)
        results = Results(
            config=config, samples=entrants.samples, contestants=entrants.contestants, taken=taken, rows=rows
        )
        write_results(
            output,
            results,
            preferences={} if verdicts is None else verdicts.results,
            lines=() if verdicts is None else verdicts.lines,
            counts=counts(entrants, verdicts),
        )
    show(config, entrants, output, results)


def rehearse(config: BenchmarkConfig) -> list[str]:
    """What a dry run shows."""
    entrants = prepare(config)
    names = ", ".join(contestant.name for contestant in entrants.contestants)
    return [
        f"{len(entrants.samples)} held-out prompts, {entrants.too_long} more are too long; they are answered by {names}"
    ]


def output_directory(config: BenchmarkConfig) -> Path:
    if config.output is not None:
        return Path(config.output)
    return run_of(Path(config.trained)) / "benchmark" if config.trained is not None else Path("benchmark")


@contextlib.contextmanager
def status(output: Path, config: BenchmarkConfig) -> Iterator[None]:
    """The directory with its recipe and environment, and what became of it."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "config.yaml", dump_config(config))
    write_atomically(output / "environment.json", to_json(environment(), indent=2) + "\n")

    def say(state: str, **more: str) -> None:
        write_atomically(output / "status.json", to_json({"state": state, "updated": now(), **more}) + "\n")

    say("running")
    try:
        yield
    except BaseException as error:
        say("stopped" if isinstance(error, KeyboardInterrupt) else "failed", error=f"{error}")
        raise
    say("finished")


# -- scores -----------------------------------------------------------------------------------------------------


def model_scores(
    config: BenchmarkConfig, entrants: Entrants, answers: Rounds
) -> dict[tuple[str, int], dict[str, float]]:
    """(name, repeat) -> sample_id -> the reward model's score, when every engine is gone."""
    if entrants.reward_model is None:
        return {}
    places = {f"{name}#{i}": (name, i) for name, rounds in answers.items() for i in range(len(rounds))}
    given = {key: answers[name][i] for key, (name, i) in places.items()}
    with evaluation_cluster(config) as cluster:
        log.info("%s scores the answers", entrants.reward_model.path)
        found = reward_scores(cluster, config, entrants.reward_model, entrants.samples, given)
    return {places[key]: scores for key, scores in found.items()}


def scored_rows(
    config: BenchmarkConfig, entrants: Entrants, answers: Rounds, rewards: Mapping[tuple[str, int], Mapping[str, float]]
) -> dict[str, list[AnswerRow]]:
    """A row for every answer, with what the metrics say of it."""
    given = [
        (one.name, repeat, sample, answers[one.name][repeat][sample.sample_id])
        for one in entrants.contestants
        for sample in entrants.samples
        for repeat in range(len(answers[one.name]))
        if sample.sample_id in answers[one.name][repeat]
    ]
    scores: list[list[Score]] = [[Score(value=None)]] * len(given)
    if entrants.rewards is not None:
        groups = [Group(sample=sample, prompt_ids=(), branches=[branch]) for _, _, sample, branch in given]
        scores = asyncio.run(entrants.rewards.score_all(groups, config.max_concurrency))
    rows: dict[str, list[AnswerRow]] = {one.name: [] for one in entrants.contestants}
    for (name, repeat, sample, branch), (score,) in zip(given, scores, strict=True):
        rows[name].append(
            build_answer_row(
                sample,
                branch,
                score,
                repeat=repeat,
                score_prediction=rewards.get((name, repeat), {}).get(sample.sample_id),
            )
        )
    return rows


def preferences(
    config: BenchmarkConfig, entrants: Entrants, answers: Rounds, taken: Mapping[str, Taken]
) -> Verdicts | None:
    """The judge's word on every pair of first answers, None where nobody asked for it."""
    settings, judges = config.preferences, entrants.judges
    if settings is None or judges is None:
        return None
    given = {name: answers[name][0] for name in entrants.compared if taken[name].remark is None}
    return compare_pairs(
        settings, entrants.samples, given, judges, max_concurrency=config.max_concurrency, seed=config.seed
    )


# -- what is left behind ----------------------------------------------------------------------------------------


def counts(entrants: Entrants, verdicts: Verdicts | None) -> dict[str, float]:
    """For metrics.json: samples, missing judgements, and what the judges took."""
    found: dict[str, float] = {"samples": len(entrants.samples), "prompts_too_long": entrants.too_long}
    for rewards in (entrants.rewards, entrants.judges):
        if rewards is not None:
            found |= {name: count for name, count in rewards.counters.items() if count}
    return found | ({} if verdicts is None else {"missing_comparisons": verdicts.missing})


def show(config: BenchmarkConfig, entrants: Entrants, output: Path, results: Results) -> None:
    print_tables(results.tables())
    report = build_benchmark_report(output)
    log_evaluation(
        config.trackers,
        directory=output,
        values=public_values(config),
        measured=read_json(output / "metrics.json"),
    )
    rich.print(f"written to {output}; report: {report}")
    if entrants.bucket is not None:
        rich.print(f"{entrants.bucket.upload(output)} files copied to {entrants.bucket.address}")


if __name__ == "__main__":
    run_program(benchmark, BenchmarkConfig, "jobs/benchmark.py", rehearse=rehearse)
