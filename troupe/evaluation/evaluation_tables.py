"""What an evaluation leaves behind: metrics.json, each model's answers as JSONL and CSV, and tables for people.

The tables are made once and shown twice: as Markdown with a model per row, as papers print them, and on the console
with a quantity per row, which stays narrow.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from troupe.evaluation.comparison import Comparison
from troupe.evaluation.estimates import Estimates
from troupe.evaluation.scores import AnswerRow
from troupe.files import to_json, write_atomically
from troupe.statistics import Estimate

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
class ResultTable:
    """Quantities (columns) of models (rows), as texts."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]


# -- files ----------------------------------------------------------------------------------------------------


def write_answers(directory: Path, name: str, rows: Sequence[AnswerRow]) -> None:
    """Write `<name>.jsonl` with the metrics as an object, `<name>.csv` with a column for each of them."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / f"{name}.jsonl", "".join(to_json(asdict(row)) + "\n" for row in rows))
    write_atomically(directory / f"{name}.csv", as_csv(rows))


def as_csv(rows: Sequence[AnswerRow]) -> str:
    """Return a header and a line per answer; what is not there is an empty cell."""
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
    """Write `{"models": {name: {metric: {mean, low, high}}}, "comparisons": {...}, "counts", "settings"}`."""
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
    """Return ROUGE, reward, everything else, and the comparisons, without the tables of which nothing was measured."""
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
    """Format a mean with its interval, as all tables show it."""
    if estimate is None:
        return "–"
    return f"{estimate.mean:.3f} ({estimate.low:.3f} .. {estimate.high:.3f})"


def as_markdown(tables: Iterable[ResultTable], *, lead: str) -> str:
    """Return a page with all the tables, a model per row."""
    parts = [lead]
    for table in tables:
        head = ["model", *table.columns]
        lines = [head, ["---", *["---:"] * len(table.columns)], *([name, *cells] for name, cells in table.rows.items())]
        parts.append(f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def print_tables(tables: Sequence[ResultTable]) -> None:
    """Print the tables with a quantity per row, which stays narrow."""
    for table in tables:
        shown = Table("", *table.rows, title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            shown.add_row(column, *(cells[index] for cells in table.rows.values()))
        rich.print(shown)
