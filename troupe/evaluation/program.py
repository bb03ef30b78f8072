"""The program behind `jobs/evaluate.py` and `jobs/benchmark.py`: a plan, answers, scores, tables, files.

    result = evaluate(EvaluateConfig(model="runs/quickstart"))
    result.metrics["quickstart"]["accuracy"].mean

docs/evaluation.md lists the files. Nothing is printed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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
    write_charts,
)
from troupe.evaluation.checkpoint_sources import run_of
from troupe.evaluation.collection import Usage, collect_answers, usage_of
from troupe.evaluation.comparison import Comparison, compare_all
from troupe.evaluation.diversity import Diversity
from troupe.evaluation.estimates import Estimates
from troupe.evaluation.evaluation_tables import ResultTable, as_markdown, result_tables, write_answers, write_metrics
from troupe.evaluation.plan import EvaluationPlan, prepare
from troupe.evaluation.preferences import Preferences, compare_pairs, preference_tables
from troupe.evaluation.scores import AnswerRow, Scores, answer_rows, estimate_metrics, function_scores
from troupe.evaluation.stored_answers import AnswersByRepeat
from troupe.files import read_json, to_json, write_atomically
from troupe.report.report_benchmark import build_benchmark_report
from troupe.report.trackers import log_evaluation
from troupe.secrets import public_values

RECIPE = "recipe.yaml"


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
    comparisons: Mapping[str, Comparison]
    """`<name> against <opponent>` -> shares of wins, ties and losses."""
    preferences: Preferences | None
    """The judgements of all pairs of a benchmark's models, and their strengths; None without a judge."""
    diversity: Mapping[str, Diversity]
    """Name -> how varied the answers are, of a benchmark."""
    usage: Mapping[str, Usage]
    """Name -> what the answers took."""
    counts: Mapping[str, float]
    """Samples, missing judgements and what the judges took."""
    tables: Sequence[ResultTable]
    """The same numbers as texts, as they are printed."""
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
        usage = {one.name: usage_of(plan, one, output / "generated") for one in plan.candidates}
        result = summarize(config, plan, answers, scores, usage)
        write_results(config, plan, result)
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
    write_atomically(output / RECIPE, dump_config(config))
    yield


def summarize(
    config: EvaluateConfig | BenchmarkConfig,
    plan: EvaluationPlan,
    answers: AnswersByRepeat,
    scores: Scores,
    usage: Mapping[str, Usage],
) -> EvaluationResult:
    """Compute means, comparisons, preferences and diversity, and lay them out in tables."""
    rows = {one.name: answer_rows(plan, one.name, answers, scores) for one in plan.candidates}
    measured = {name: of_name for name, of_name in rows.items() if usage[name].remark is None}
    metrics = {name: estimate_metrics(of_name, seed=config.seed) for name, of_name in measured.items()}
    comparisons = compare_all(config, plan, answers, scores) if isinstance(config, EvaluateConfig) else {}
    tables = result_tables(metrics, comparisons)
    preferences, diversity = None, {}
    if isinstance(config, BenchmarkConfig):
        preferences = compare_candidates(config, plan, answers, list(measured))
        diversity = measure_diversity(plan, measured, seed=config.seed) if config.diversity else {}
        tables = [
            *(with_unmeasured(table, usage) for table in tables),
            usage_table(usage),
            *diversity_tables(diversity),
        ]
    if preferences is not None:
        tables += preference_tables(preferences.results)
    return EvaluationResult(
        output=output_directory(config),
        lead=lead_of(config, plan),
        rows=rows,
        metrics=metrics,
        comparisons=comparisons,
        preferences=preferences,
        diversity=diversity,
        usage=usage,
        counts=counts_of(plan, preferences),
        tables=tables,
    )


def lead_of(config: EvaluateConfig | BenchmarkConfig, plan: EvaluationPlan) -> str:
    """Return the sentences under the heading of the tables."""
    noun = {None: "answer", "environment": "game", "agent": "episode"}[config.played]
    each = f"one {noun} each" if plan.repeats == 1 else f"{plan.repeats} {noun}s each"
    words = (
        f"{len(plan.samples)} held-out samples of {config.data.type}, {each}, {config.in_words}, at most "
        f"{config.max_response_tokens} tokens; means with 95 % bootstrap intervals over samples."
    )
    if plan.too_long:
        words += f" {plan.too_long} prompts were longer than {config.max_prompt_tokens} tokens and left out."
    if isinstance(config, EvaluateConfig) and config.opponent is not None:
        words += f" Judge of the comparisons: {config.judge_name}, ties within {config.margin:g}."
    return words


def write_results(config: EvaluateConfig | BenchmarkConfig, plan: EvaluationPlan, result: EvaluationResult) -> None:
    """Write answers, metrics.json and results.md, and what a benchmark has beside them."""
    output = result.output
    for name, rows in result.rows.items():
        write_answers(output / "answers", name, rows)
    title, recipe = ("Benchmark", "config.yaml") if isinstance(config, BenchmarkConfig) else ("Evaluation", RECIPE)
    settings = {"recipe": recipe, "intervals": "95 %, percentile bootstrap over samples", "split": "validation"}
    if isinstance(config, EvaluateConfig) and config.opponent is not None:
        settings |= {"against": config.opponent, "judge": config.judge_name, "tie_margin": f"{config.margin:g}"}
    metrics = output / "metrics.json"
    write_metrics(metrics, result.metrics, result.comparisons, counts=result.counts, settings=settings)
    write_atomically(output / "results.md", as_markdown(result.tables, lead=f"# {title}\n\n{result.lead}"))
    if isinstance(config, BenchmarkConfig):
        write_benchmark(config, plan, result)


def write_benchmark(config: BenchmarkConfig, plan: EvaluationPlan, result: EvaluationResult) -> None:
    """Write benchmark.json, of which the report is made, the charts, and every judgement of a pair."""
    output, preferences = result.output, result.preferences
    charts = chart_data(config, plan.candidates, result.metrics)
    write_charts(output / "charts", charts)
    content = {
        "lead": result.lead,
        "contestants": describe_candidates(plan.candidates, result.usage),
        "charts": [chart.as_dict() for chart in charts],
        "diversity": {name: found.as_dict() for name, found in result.diversity.items()},
        "preferences": {} if preferences is None else preferences.results,
        "tables": [asdict(table) for table in result.tables],
        "counts": result.counts,
    }
    write_atomically(output / "benchmark.json", to_json(content, indent=2) + "\n")
    if preferences is not None:
        write_atomically(output / "preferences.jsonl", "".join(to_json(line) + "\n" for line in preferences.lines))


def compare_candidates(
    config: BenchmarkConfig, plan: EvaluationPlan, answers: AnswersByRepeat, measured: Sequence[str]
) -> Preferences | None:
    """Have the judge compare every pair of first answers; None where the recipe names no judge."""
    if config.preferences is None or plan.judges is None:
        return None
    given = {name: answers[name, 0] for name in plan.compared if name in measured}
    limit = config.max_concurrency
    return compare_pairs(config.preferences, plan.samples, given, plan.judges, max_concurrency=limit, seed=config.seed)


def counts_of(plan: EvaluationPlan, preferences: Preferences | None) -> dict[str, float]:
    """Return samples, missing judgements, and what the judges took, for metrics.json."""
    counts: dict[str, float] = {"samples": len(plan.samples), "prompts_too_long": plan.too_long}
    for rewards in (plan.rewards, plan.judges):
        if rewards is not None:
            counts |= {name: count for name, count in rewards.counters.items() if count}
            counts |= {f"missing_{label}": count for label, count in rewards.missing.items()}
    return counts if preferences is None else {**counts, "missing_comparisons": preferences.missing}


def publish(config: AnsweringConfig, plan: EvaluationPlan, result: EvaluationResult) -> EvaluationResult:
    """Build the report of a benchmark, and hand the results to trackers and to a bucket."""
    output = result.output
    if isinstance(config, BenchmarkConfig):
        build_benchmark_report(output)
    measured = read_json(output / "metrics.json")
    log_evaluation(config.trackers, directory=output, values=public_values(config), measured=measured)
    return result if plan.bucket is None else replace(result, uploaded=plan.bucket.upload(output))
