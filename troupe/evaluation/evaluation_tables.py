"""What an evaluation leaves behind: metrics.json, each model's answers as JSONL and CSV, and tables for people.

The tables are made once and shown twice: as Markdown with a model per row, as papers print them, and on the console
with a quantity per row, which stays narrow.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from troupe.chat import prompt_text
from troupe.evaluation.checkpoint_sources import UNKNOWN
from troupe.evaluation.comparison import Comparison
from troupe.files import to_json, write_atomically
from troupe.records import Branch, Sample, Score
from troupe.statistics import Estimate, estimate_difference, estimate_mean

Estimates = Mapping[str, Estimate]

ROUGE_COLUMNS = {"rouge/rouge1": "ROUGE-1", "rouge/rouge2": "ROUGE-2", "rouge/rougeL": "ROUGE-L", "rouge": "average"}
REWARD_COLUMNS = {
    "reward": "reward",
    "reward_reference": "reward of the references",
    "reward_difference": "difference",
}
COMPARISON_COLUMNS = {
    "win_share": "win",
    "tie_share": "tie",
    "loss_share": "loss",
    "win_rate": "win rate",
    "win_rate_ties_half": "win rate, ties half",
    "average_reward": "average",
    "average_reference_reward": "average of the other",
    "reward_improvement": "improvement",
    "length_ratio": "length ratio",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """One answer and what was measured of it."""

    sample_id: str
    prompt: str
    reference: str | None
    prediction: str
    finish_reason: str
    repeat: int = 0
    """Which of several answers to the sample."""
    score_prediction: float | None = None
    """The reward model's score of the answer."""
    score_reference: float | None = None
    """And of the reference, None where it was not asked for."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """A judgement that is missing is not in it."""


def build_answer_row(
    sample: Sample,
    branch: Branch,
    score: Score | None,
    *,
    repeat: int = 0,
    score_prediction: float | None = None,
    score_reference: float | None = None,
) -> AnswerRow:
    """The row of an answer: what reward functions said of it (None: nothing), its lengths, the reward model's scores."""
    return AnswerRow(
        sample_id=sample.sample_id,
        prompt=prompt_text(sample),
        reference=sample.gold,
        prediction=branch.text,
        finish_reason=branch.finish_reason,
        repeat=repeat,
        score_prediction=score_prediction,
        score_reference=score_reference,
        metrics={**(score.parts if score is not None else {}), **_lengths(branch)},
    )


def _lengths(branch: Branch) -> dict[str, float]:
    """Words; where they are known also tokens, and whether the answer was cut."""
    found = {"response_words": float(num_words(branch))}
    if branch.finish_reason != UNKNOWN:
        found["truncated_fraction"] = float(branch.truncated)
    return {**found, "response_tokens": float(branch.num_sampled)} if branch.token_ids else found


def num_words(branch: Branch) -> int:
    return len(branch.text.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultTable:
    """Quantities (columns) of models (rows), as texts."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]


def measure(rows: Sequence[AnswerRow], *, seed: int) -> dict[str, Estimate]:
    """Means over the samples that have the metric; differences over those that have both scores.

    Several answers to a sample count as their mean, so that an interval is over samples.
    """
    samples: dict[str, list[AnswerRow]] = {}
    for row in rows:
        samples.setdefault(row.sample_id, []).append(row)
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    columns = {name: _by_sample(samples, _metric(name)) for name in names}
    columns["reward"] = _by_sample(samples, lambda row: row.score_prediction)
    columns["reward_reference"] = _by_sample(samples, lambda row: row.score_reference)
    measured = {name: estimate_mean(list(values.values()), seed=seed) for name, values in columns.items() if values}
    both = columns["reward"].keys() & columns["reward_reference"].keys()
    if both:
        ids = [sample_id for sample_id in samples if sample_id in both]
        predicted, referred = ([columns[name][each] for each in ids] for name in ("reward", "reward_reference"))
        measured["reward_difference"] = estimate_difference(predicted, referred, seed=seed)
    return measured


def _metric(name: str) -> Callable[[AnswerRow], float | None]:
    return lambda row: row.metrics.get(name)


def _by_sample(
    samples: Mapping[str, Sequence[AnswerRow]], value: Callable[[AnswerRow], float | None]
) -> dict[str, float]:
    """sample_id -> mean of the value over the sample's answers, where one of them has it."""
    found = {}
    for sample_id, rows in samples.items():
        values = [known for row in rows if (known := value(row)) is not None]
        if values:
            found[sample_id] = sum(values) / len(values)
    return found


# -- files ----------------------------------------------------------------------------------------------------


def write_answers(directory: Path, name: str, rows: Sequence[AnswerRow]) -> None:
    """`<name>.jsonl` with the metrics as an object, `<name>.csv` with a column for each of them."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / f"{name}.jsonl", "".join(to_json(asdict(row)) + "\n" for row in rows))
    write_atomically(directory / f"{name}.csv", as_csv(rows))


def as_csv(rows: Sequence[AnswerRow]) -> str:
    """A header and a line per answer; what is not there is an empty cell."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    fixed = [name for name in AnswerRow.__dataclass_fields__ if name != "metrics"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*fixed, *metrics])
    for row in rows:
        writer.writerow([*(getattr(row, name) for name in fixed), *(row.metrics.get(name) for name in metrics)])
    return text.getvalue()


def write_metrics(
    path: Path,
    models: Mapping[str, Estimates],
    comparisons: Mapping[str, Comparison],
    *,
    counts: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """metrics.json: `{"models": {name: {metric: {mean, low, high}}}, "comparisons": {...}, "counts", "settings"}`."""
    content = {
        "models": {
            model: {name: asdict(estimate) for name, estimate in measured.items()} for model, measured in models.items()
        },
        "comparisons": {name: comparison.as_dict() for name, comparison in comparisons.items()},
        "counts": counts,
        "settings": settings,
    }
    write_atomically(path, to_json(content, indent=2) + "\n")


# -- tables ---------------------------------------------------------------------------------------------------


def result_tables(models: Mapping[str, Estimates], comparisons: Mapping[str, Comparison]) -> list[ResultTable]:
    """ROUGE, reward, everything else, and the comparisons; those of which nothing was measured are left out."""
    known = {*ROUGE_COLUMNS, *REWARD_COLUMNS}
    others = {
        name: name.replace("_", " ")
        for measured in models.values()
        for name in measured
        if name not in known and not name.startswith("rouge/")
    }
    compared = {name: comparison.as_dict() for name, comparison in comparisons.items()}
    against = {
        name: {key: Estimate(**value) for key, value in values.items() if isinstance(value, Mapping)}
        for name, values in compared.items()
    }
    tables = [
        _table("ROUGE (F1)", ROUGE_COLUMNS, models),
        _table("Reward", REWARD_COLUMNS, models),
        _table("Metrics", others, models),
        _table("Comparisons", COMPARISON_COLUMNS, against),
    ]
    return [table for table in tables if table.rows and table.columns]


def _table(title: str, columns: Mapping[str, str], models: Mapping[str, Estimates]) -> ResultTable:
    present = [name for name in columns if any(name in measured for measured in models.values())]
    return ResultTable(
        title=title,
        columns=[columns[name] for name in present],
        rows={model: [cell(measured.get(name)) for name in present] for model, measured in models.items()},
    )


def cell(estimate: Estimate | None) -> str:
    """A mean with its interval, as all tables show it."""
    if estimate is None:
        return "–"
    return f"{estimate.mean:.3f} ({estimate.low:.3f} .. {estimate.high:.3f})"


def as_markdown(tables: Iterable[ResultTable], *, lead: str) -> str:
    """A page with a table each."""
    parts = [lead]
    for table in tables:
        head = ["model", *table.columns]
        lines = [head, ["---", *["---:"] * len(table.columns)], *([name, *cells] for name, cells in table.rows.items())]
        parts.append(f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def print_tables(tables: Sequence[ResultTable]) -> None:
    """On the console a quantity has a row, which stays narrow."""
    for table in tables:
        shown = Table("", *table.rows, title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            shown.add_row(column, *(cells[index] for cells in table.rows.values()))
        rich.print(shown)
