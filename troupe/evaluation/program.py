"""The program behind `jobs/evaluate.py` and `jobs/benchmark.py`: a plan, answers, scores, tables, files.

    result = evaluate(EvaluateConfig(model="runs/quickstart"))
    result.metrics["quickstart"]["accuracy"].mean

docs/evaluation.md lists the files. Nothing is printed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.config.evaluation import AnsweringConfig, BenchmarkConfig, EvaluateConfig
from troupe.config.loader import dump_config
from troupe.evaluation.benchmark_results import (
    chart_data,
    describe_candidates,
    diversity_tables,
    measure_diversity,
    open_benchmark,
    usage_table,
    with_unmeasured,
    write_benchmark,
)
from troupe.evaluation.checkpoint_sources import run_of
from troupe.evaluation.collection import Usage, collect_answers, usage_of
from troupe.evaluation.comparison import Comparison, compare_all
from troupe.evaluation.evaluation_tables import ResultTable, as_markdown, result_tables, write_answers, write_metrics
from troupe.evaluation.plan import EvaluationPlan, prepare
from troupe.evaluation.preferences import Preferences, compare_pairs, preference_tables
from troupe.evaluation.scores import AnswerRow, Estimates, Scores, answer_rows, estimate_metrics, function_scores
from troupe.evaluation.stored_answers import AnswersByRepeat
from troupe.files import read_json, to_json, write_atomically
from troupe.report.report_benchmark import build_benchmark_report
from troupe.report.trackers import log_evaluation
from troupe.secrets import public_values


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """The numbers of an evaluation, and where they were written."""

    output: Path
    """The directory of everything written."""
    lead: str
    """What was done, in a sentence."""
    rows: Mapping[str, Sequence[AnswerRow]]
    """Name -> every answer with what was measured of it."""
    metrics: Mapping[str, Estimates]
    """Name -> metric -> mean with its 95 % interval; without the models of which too many answers are missing."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """`<name> against <opponent>` -> shares of wins, ties and losses."""
    preferences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Dimension -> strengths and pairs of a benchmark."""
    counts: Mapping[str, float] = field(default_factory=dict)
    tables: Sequence[ResultTable] = ()
    uploaded: int = 0
    """Files that were copied to `upload`."""

    @property
    def files(self) -> list[Path]:
        """The files that were written."""
        return sorted(path for path in self.output.rglob("*") if path.is_file())


def evaluate(config: EvaluateConfig | BenchmarkConfig) -> EvaluationResult:
    """Have every candidate answer, score the answers, write everything; a second call goes on from the answers."""
    plan = prepare(config)
    output = output_directory(config)
    with open_benchmark(output, config) if isinstance(config, BenchmarkConfig) else open_evaluation(output, config):
        answers, rewards = collect_answers(config, plan, output / "generated")
        scores = Scores(rewards=rewards, functions=function_scores(config, plan, answers))
        rows = {one.name: answer_rows(plan, one.name, answers, scores) for one in plan.candidates}
        for name, of_name in rows.items():
            write_answers(output / "answers", name, of_name)
        if isinstance(config, BenchmarkConfig):
            result = finish_benchmark(config, plan, output, answers, rows)
        else:
            comparisons = compare_all(config, plan, answers, scores)
            result = finish_evaluation(config, plan, output, rows, comparisons)
    return publish(config, plan, result)


def output_directory(config: EvaluateConfig | BenchmarkConfig) -> Path:
    """Return where everything is written."""
    if config.output is not None:
        return Path(config.output)
    if isinstance(config, BenchmarkConfig):
        return run_of(Path(config.trained)) / "benchmark" if config.trained is not None else Path("benchmark")
    is_run = config.model is not None and (Path(config.model) / "checkpoints").is_dir()
    return Path(str(config.model)) / "evaluation" if is_run else Path("evaluation")


@contextlib.contextmanager
def open_evaluation(output: Path, config: EvaluateConfig) -> Iterator[None]:
    """Create the directory with its recipe."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "recipe.yaml", dump_config(config))
    yield


def finish_evaluation(
    config: EvaluateConfig,
    plan: EvaluationPlan,
    output: Path,
    rows: Mapping[str, Sequence[AnswerRow]],
    comparisons: Mapping[str, Comparison],
) -> EvaluationResult:
    """Write the means, the comparisons and their tables."""
    metrics = {name: estimate_metrics(of_name, seed=config.seed) for name, of_name in rows.items()}
    counts = counts_of(plan)
    settings = {"recipe": "recipe.yaml", "intervals": "95 %, percentile bootstrap"}
    if config.opponent is not None:
        settings |= {"against": config.opponent, "judge": config.judge_name, "tie_margin": f"{config.margin:g}"}
    write_metrics(output / "metrics.json", metrics, comparisons, counts=counts, settings=settings)
    tables, lead = result_tables(metrics, comparisons), evaluation_lead(config, plan)
    write_atomically(output / "results.md", as_markdown(tables, lead=f"# Evaluation\n\n{lead}"))
    return EvaluationResult(
        output=output, lead=lead, rows=rows, metrics=metrics, comparisons=comparisons, counts=counts, tables=tables
    )


def evaluation_lead(config: EvaluateConfig, plan: EvaluationPlan) -> str:
    """Return the sentences under the heading of the tables."""
    words = f"{len(plan.samples)} held-out samples of {config.data.type}, answered {config.in_words}; means with 95 % bootstrap intervals."
    if plan.too_long:
        words += f" {plan.too_long} prompts were longer than {config.max_prompt_tokens} tokens and left out."
    if config.opponent is not None:
        words += f" Judge of the comparisons: {config.judge_name}, ties within {config.margin:g}."
    return words


def finish_benchmark(
    config: BenchmarkConfig,
    plan: EvaluationPlan,
    output: Path,
    answers: AnswersByRepeat,
    rows: Mapping[str, Sequence[AnswerRow]],
) -> EvaluationResult:
    """Compare pairs and write means, preferences, diversity, costs, charts and their tables."""
    usage = {
        one.name: usage_of(plan, one, output / "generated", max_missing=config.max_missing) for one in plan.candidates
    }
    measured = {name: of_name for name, of_name in rows.items() if usage[name].remark is None}
    metrics = {name: estimate_metrics(of_name, seed=config.seed) for name, of_name in measured.items()}
    preferences = compare_candidates(config, plan, answers, usage)
    diversity = measure_diversity(plan, measured, seed=config.seed) if config.diversity else {}
    charts = chart_data(config, plan.candidates, metrics)
    counts = counts_of(plan) | ({} if preferences is None else {"missing_comparisons": preferences.missing})
    settings = {"recipe": "config.yaml", "intervals": "95 %, percentile bootstrap over samples", "split": "validation"}
    write_metrics(output / "metrics.json", metrics, {}, counts=counts, settings=settings)
    results = {} if preferences is None else preferences.results
    tables = [
        *(with_unmeasured(table, usage) for table in result_tables(metrics, {})),
        usage_table(usage),
        *diversity_tables(diversity),
        *preference_tables(results),
    ]
    lead = benchmark_lead(config, plan)
    content = {
        "lead": lead,
        "contestants": describe_candidates(plan.candidates, usage),
        "charts": [chart.as_dict() for chart in charts],
        "diversity": {name: found.as_dict() for name, found in diversity.items()},
        "preferences": results,
        "tables": [asdict(table) for table in tables],
        "counts": counts,
    }
    write_benchmark(output, content, charts)
    write_atomically(output / "results.md", as_markdown(tables, lead=f"# Benchmark\n\n{lead}"))
    if preferences is not None:
        write_atomically(output / "preferences.jsonl", "".join(to_json(line) + "\n" for line in preferences.lines))
    return EvaluationResult(
        output=output, lead=lead, rows=rows, metrics=metrics, preferences=results, counts=counts, tables=tables
    )


def benchmark_lead(config: BenchmarkConfig, plan: EvaluationPlan) -> str:
    """Return the sentence under the heading of the tables."""
    each = "one answer each" if config.repeats == 1 else f"{config.repeats} answers each"
    return (
        f"{len(plan.samples)} samples of the validation split of {config.data.type}, {each}, {config.in_words}, at most "
        f"{config.max_response_tokens} tokens; means with 95 % bootstrap intervals over samples."
    )


def compare_candidates(
    config: BenchmarkConfig, plan: EvaluationPlan, answers: AnswersByRepeat, usage: Mapping[str, Usage]
) -> Preferences | None:
    """Have the judge compare every pair of first answers; None where the recipe names no judge."""
    if config.preferences is None or plan.judges is None:
        return None
    given = {name: answers[name, 0] for name in plan.compared if usage[name].remark is None}
    concurrency = config.max_concurrency
    return compare_pairs(
        config.preferences, plan.samples, given, plan.judges, max_concurrency=concurrency, seed=config.seed
    )


def counts_of(plan: EvaluationPlan) -> dict[str, float]:
    """Return samples, missing judgements, and what the judges took, for metrics.json."""
    counts: dict[str, float] = {"samples": len(plan.samples), "prompts_too_long": plan.too_long}
    for rewards in (plan.rewards, plan.judges):
        if rewards is not None:
            counts |= {name: count for name, count in rewards.counters.items() if count}
            counts |= {f"missing_{label}": count for label, count in rewards.missing.items()}
    return counts


def publish(config: AnsweringConfig, plan: EvaluationPlan, result: EvaluationResult) -> EvaluationResult:
    """Build the report of a benchmark, and hand the results to trackers and to a bucket."""
    output = result.output
    if isinstance(config, BenchmarkConfig):
        build_benchmark_report(output)
    measured = read_json(output / "metrics.json")
    log_evaluation(config.trackers, directory=output, values=public_values(config), measured=measured)
    return result if plan.bucket is None else replace(result, uploaded=plan.bucket.upload(output))
