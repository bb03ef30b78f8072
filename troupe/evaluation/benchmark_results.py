"""What a benchmark writes beside the files of every evaluation: benchmark.json, charts, preferences, its tables."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from troupe.chat import turn_text
from troupe.config.evaluation import BenchmarkConfig
from troupe.config.loader import dump_config
from troupe.evaluation.collection import Usage
from troupe.evaluation.diversity import COLUMNS, Diversity, Text, diversity
from troupe.evaluation.estimates import Estimates
from troupe.evaluation.evaluation_tables import ResultTable, cell
from troupe.evaluation.plan import Candidate, EvaluationPlan
from troupe.evaluation.scores import AnswerRow
from troupe.files import now, to_json, write_atomically
from troupe.report.benchmark_charts import ChartData, first_and_last, over_steps
from troupe.report.charts import short
from troupe.runs.run_directory import environment, locked

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_benchmark(output: Path, config: BenchmarkConfig) -> Iterator[None]:
    """Lock the directory, write its recipe and environment, and keep status.json up to date."""

    def write_status(state: str, **more: str) -> None:
        write_atomically(output / "status.json", to_json({"state": state, "updated": now(), **more}) + "\n")

    with locked(output):
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "config.yaml", dump_config(config))
        write_atomically(output / "environment.json", to_json(environment(), indent=2) + "\n")
        write_status("running")
        try:
            yield
        except BaseException as error:
            write_status("stopped" if isinstance(error, KeyboardInterrupt) else "failed", error=f"{error}")
            raise
        write_status("finished")


def write_charts(directory: Path, charts: Sequence[ChartData]) -> None:
    """Write two SVG files for each metric, and the numbers behind all of them as charts.json."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "charts.json", to_json([chart.as_dict() for chart in charts], indent=2) + "\n")
    for chart in charts:
        for kind, drawn in (("over-steps", over_steps(chart)), ("first-and-last", first_and_last(chart))):
            if drawn:
                name = f"{chart.metric.replace('/', '-')}-{kind}.svg"
                write_atomically(directory / name, drawn)


def describe_candidates(candidates: Sequence[Candidate], usage: Mapping[str, Usage]) -> list[dict[str, Any]]:
    """Return what benchmark.json holds of every candidate."""
    return [{"name": one.name, "kind": one.kind, "step": one.step, **usage[one.name].as_dict()} for one in candidates]


def chart_data(
    config: BenchmarkConfig, candidates: Sequence[Candidate], metrics: Mapping[str, Estimates]
) -> list[ChartData]:
    """Return the numbers of a chart for every metric that is drawn and that some candidate has."""
    charts = []
    for metric in config.drawn:
        having = [one for one in candidates if metric in metrics.get(one.name, {})]
        if not having:
            log.warning("%s is not drawn: no model was measured by it", metric)
            continue
        points = [(one.step, metrics[one.name][metric]) for one in having if one.step is not None]
        others = {one.name: metrics[one.name][metric] for one in having if one.kind != "trained"}
        name = config.trained_name if points else ""
        charts.append(ChartData(metric=metric, trained=name, points=points, others=others))
    return charts


def measure_diversity(
    plan: EvaluationPlan, rows: Mapping[str, Sequence[AnswerRow]], *, seed: int
) -> dict[str, Diversity]:
    """Measure how varied the answers of each model are."""
    prompts = {sample.sample_id: _plain_text(sample.prompt) for sample in plan.samples}
    return {
        name: diversity(
            [
                Text(sample_id=row.sample_id, answer=row.prediction, prompt=prompts[row.sample_id], gold=row.reference)
                for row in of_name
            ],
            seed=seed,
        )
        for name, of_name in rows.items()
    }


def _plain_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(map(turn_text, prompt))


# -- tables -------------------------------------------------------------------------------------------------------


def with_unmeasured(table: ResultTable, usage: Mapping[str, Usage]) -> ResultTable:
    """Return the table with a row for every candidate that lacks too many answers to be measured."""
    empty = ["–"] * (len(table.columns) - 1)
    more = {
        name: [f"missing ({taken.missing} of {taken.wanted})", *empty]
        for name, taken in usage.items()
        if taken.remark is not None
    }
    return replace(table, rows={**table.rows, **more})


def usage_table(usage: Mapping[str, Usage]) -> ResultTable:
    """Return what the answers of every candidate took."""
    rows = {
        name: [
            taken.source,
            f"{taken.answered} of {taken.wanted}",
            str(taken.missing),
            f"{taken.failed_calls} of {taken.calls}" if taken.calls else "–",
            f"{short(taken.prompt_tokens)} + {short(taken.completion_tokens)}" if taken.calls else "–",
            f"{taken.cost:.4f}" if taken.cost else "–",
            taken.remark or "",
        ]
        for name, taken in usage.items()
    }
    columns = ["source", "answers", "missing", "failed calls", "tokens, prompt + answer", "cost", "remark"]
    return ResultTable(title="Answers and cost", columns=columns, rows=rows)


def diversity_tables(found: Mapping[str, Diversity]) -> list[ResultTable]:
    """Return the statistics of every model, and its overlap with sections of the prompt where there are some."""
    known = dict.fromkeys(key for one in found.values() for key in (*one.means, *one.distinct))
    sections = [key for key in known if key.startswith("rouge_l_precision/")]
    columns = {
        "Diversity": {key: heading for key, heading in COLUMNS.items() if key in known},
        "ROUGE-L precision against sections of the prompt": {key: key.partition("/")[2] for key in sections},
    }

    def shown(one: Diversity, key: str) -> str:
        return f"{one.distinct[key]:.3f}" if key in one.distinct else cell(one.means.get(key))

    return [
        ResultTable(
            title=title,
            columns=list(headings.values()),
            rows={name: [shown(one, key) for key in headings] for name, one in found.items()},
        )
        for title, headings in columns.items()
        if headings
    ]
