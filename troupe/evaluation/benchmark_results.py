"""What a benchmark leaves behind: benchmark.json, metrics.json, tables, charts, and every answer with what was measured of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from troupe.config.evaluation import BenchmarkConfig
from troupe.evaluation.diversity import COLUMNS, Diversity, Text, diversity
from troupe.evaluation.evaluation_tables import (
    AnswerRow,
    Estimates,
    ResultTable,
    as_markdown,
    cell,
    measure,
    result_tables,
    write_answers,
    write_metrics,
)
from troupe.evaluation.preferences import preference_tables
from troupe.files import to_json, write_atomically
from troupe.records import Sample
from troupe.report.benchmark_charts import ChartData, first_and_last, over_steps
from troupe.report.charts import short

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Somebody who answers: a step of the trained model, its base, another model here, or one behind an endpoint."""

    name: str
    kind: Literal["trained", "base", "model", "endpoint"]
    step: int | None = None
    path: str | None = None
    """Where its weights lie, for those that may answer here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a contestant's answers took, over all calls of the job."""

    wanted: int
    answered: int
    source: str = "endpoint"
    calls: int = 0
    failed_calls: int = 0
    """Calls that brought no answer, those that were tried again with success among them."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    remark: str | None = None
    """Why it is not measured; None where it is."""

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], *, wanted: int, max_missing: float) -> Taken:
        """From the lines of an answer log; a question that failed in one call of the job and came in the next is answered."""
        answered = len({row["question"] for row in rows if row["text"] is not None})
        remark = None
        if wanted - answered > max_missing * wanted or not answered:
            reasons = [str(row["reason"]) for row in rows if row.get("reason")]
            last = f": {reasons[-1]}" if reasons else ""
            remark = f"{wanted - answered} of {wanted} answers are missing{last}"
        return cls(
            wanted=wanted,
            answered=answered,
            calls=sum(row["calls"] for row in rows),
            failed_calls=sum(row["failed_calls"] for row in rows),
            prompt_tokens=sum(row["prompt_tokens"] for row in rows),
            completion_tokens=sum(row["completion_tokens"] for row in rows),
            cost=sum(row["cost"] for row in rows),
            remark=remark,
        )

    @property
    def missing(self) -> int:
        return self.wanted - self.answered

    def as_dict(self) -> dict[str, Any]:
        """For benchmark.json."""
        return {**asdict(self), "missing": self.missing}


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everybody's answers and what was measured of them."""

    config: BenchmarkConfig
    samples: Sequence[Sample]
    contestants: Sequence[Contestant]
    taken: Mapping[str, Taken]
    rows: Mapping[str, Sequence[AnswerRow]]

    @cached_property
    def models(self) -> dict[str, Estimates]:
        """Name -> metric -> mean with interval, of those that answered enough."""
        return {
            one.name: measure(self.rows[one.name], seed=self.config.seed)
            for one in self.contestants
            if self.taken[one.name].remark is None
        }

    @cached_property
    def charts(self) -> list[ChartData]:
        """A chart's numbers for every metric that is drawn and that anybody has."""
        found = []
        for metric in self.config.drawn:
            having = [one for one in self.contestants if metric in self.models.get(one.name, {})]
            points = [(one.step, self.models[one.name][metric]) for one in having if one.step is not None]
            others = {one.name: self.models[one.name][metric] for one in having if one.kind != "trained"}
            if not having:
                log.warning("%s is not drawn: nobody was measured by it", metric)
            else:
                name = self.config.trained_name if points else ""
                found.append(ChartData(metric=metric, trained=name, points=points, others=others))
        return found

    @cached_property
    def diversity(self) -> dict[str, Diversity]:
        """Of every model that is measured; empty when it is switched off."""
        if not self.config.diversity:
            return {}
        prompts = {sample.sample_id: _whole_text(sample) for sample in self.samples}
        return {
            name: diversity(
                [
                    Text(
                        sample_id=row.sample_id,
                        answer=row.prediction,
                        prompt=prompts[row.sample_id],
                        gold=row.reference,
                    )
                    for row in self.rows[name]
                ],
                seed=self.config.seed,
            )
            for name in self.models
        }

    def tables(self, preferences: Mapping[str, Mapping[str, Any]] | None = None) -> list[ResultTable]:
        """Metrics with a row for everybody, what answers took, diversity, preferences."""
        measured = result_tables(self.models, {})
        remarked = {name: taken for name, taken in self.taken.items() if taken.remark is not None}
        for table in measured:
            empty = ["–"] * (len(table.columns) - 1)
            rows = {
                **table.rows,
                **{name: [f"missing ({taken.missing} of {taken.wanted})", *empty] for name, taken in remarked.items()},
            }
            measured[measured.index(table)] = ResultTable(title=table.title, columns=table.columns, rows=rows)
        return [*measured, self._costs(), *self._diversity_tables(), *preference_tables(preferences or {})]

    def _costs(self) -> ResultTable:
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
            for name, taken in self.taken.items()
        }
        columns = ["source", "answers", "missing", "failed calls", "tokens, prompt + answer", "cost", "remark"]
        return ResultTable(title="Answers and cost", columns=columns, rows=rows)

    def _diversity_tables(self) -> list[ResultTable]:
        if not self.diversity:
            return []
        known = {key for found in self.diversity.values() for key in (*found.means, *found.distinct)}
        shown = [key for key in COLUMNS if key in known]
        rows = {}
        for name, found in self.diversity.items():
            distinct = {key: f"{value:.3f}" for key, value in found.distinct.items()}
            rows[name] = [distinct.get(key) or cell(found.means.get(key)) for key in shown]
        tables = [ResultTable(title="Diversity", columns=[COLUMNS[key] for key in shown], rows=rows)]
        sections = dict.fromkeys(
            key for found in self.diversity.values() for key in found.means if key.startswith("rouge_l_precision/")
        )
        if sections:
            columns = [key.partition("/")[2] for key in sections]
            rows = {name: [cell(found.means.get(key)) for key in sections] for name, found in self.diversity.items()}
            tables.append(
                ResultTable(title="ROUGE-L precision against sections of the prompt", columns=columns, rows=rows)
            )
        return tables

    @property
    def lead(self) -> str:
        """What was done, under the heading."""
        config = self.config
        each = "one answer each" if config.repeats == 1 else f"{config.repeats} answers each"
        return (
            f"{len(self.samples)} samples of the validation split of {config.data.type}, {each}, {config.in_words}, at most "
            f"{config.max_response_tokens} tokens; means with 95 % bootstrap intervals over samples."
        )


def _whole_text(sample: Sample) -> str:
    if isinstance(sample.prompt, str):
        return sample.prompt
    return "\n\n".join(message["content"] for message in sample.prompt)


def write_results(
    output: Path,
    results: Results,
    *,
    preferences: Mapping[str, Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    counts: Mapping[str, float],
) -> None:
    """Write every file but the report, which is made from them."""
    for name, rows in results.rows.items():
        write_answers(output / "answers", name, rows)
    settings = {"recipe": "config.yaml", "intervals": "95 %, percentile bootstrap over samples", "split": "validation"}
    write_metrics(output / "metrics.json", results.models, {}, counts=counts, settings=settings)
    tables = results.tables(preferences)
    content = {
        "lead": results.lead,
        "contestants": [
            {"name": one.name, "kind": one.kind, "step": one.step, **results.taken[one.name].as_dict()}
            for one in results.contestants
        ],
        "charts": [chart.as_dict() for chart in results.charts],
        "diversity": {name: found.as_dict() for name, found in results.diversity.items()},
        "preferences": preferences,
        "tables": [asdict(table) for table in tables],
        "counts": counts,
    }
    write_atomically(output / "benchmark.json", to_json(content, indent=2) + "\n")
    write_atomically(output / "results.md", as_markdown(tables, lead=f"# Benchmark\n\n{results.lead}"))
    if preferences:
        write_atomically(output / "preferences.jsonl", "".join(to_json(line) + "\n" for line in lines))
    write_charts(output / "charts", results.charts)


def write_charts(directory: Path, charts: Sequence[ChartData]) -> None:
    """Two SVG files for each metric, and the numbers behind all of them as charts.json."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "charts.json", to_json([chart.as_dict() for chart in charts], indent=2) + "\n")
    for chart in charts:
        name = chart.metric.replace("/", "-")
        for kind, drawn in (("over-steps", over_steps(chart)), ("first-and-last", first_and_last(chart))):
            if drawn:
                write_atomically(directory / f"{name}-{kind}.svg", drawn)
