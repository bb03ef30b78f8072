"""What trackers show of a run beside its metrics: a name that can be read, and what its models said.

Everything comes from the recipe and from the files of the run directory, so a tracker sees what a person sees there.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from troupe.files import records

DEFAULT_DIRECTORY = "runs"
MOST_MODELS_IN_A_NAME = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows that a tracker shows as a table."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Names of a run in a tracker. Example: name `sft_smol-135m_docstrings`, method `sft`, group `summaries`."""

    name: str
    method: str
    group: str | None
    tags: Sequence[str]


def labels(directory: Path, values: Mapping[str, Any], *, program: str) -> Labels:
    """Return the labels of the run in `directory`, begun by `program` (jobs/train_sft.py) with the recipe `values`.

    A run is called by its own name, which its directory makes unique; one that was left at a name which states no
    more than the method is called `{method}_{model}_{data}`, and an evaluation `eval_{models}_{data}`.
    """
    method = Path(program).stem.removeprefix("train_")
    models, data = _models(values), _data(values.get("data") or {})
    run = values.get("run")
    if run is None:
        parts = ["eval" if method == "evaluate" else method, "+".join(models[:MOST_MODELS_IN_A_NAME]), data]
        return Labels(name=_joined(parts), method=method, group=None, tags=_tags(method, *models, data))
    says_nothing = run.get("name") in (method, "quickstart")
    name = _joined([method, *models, data]) if says_nothing else directory.name
    holder = Path(run.get("directory") or DEFAULT_DIRECTORY).name
    group = holder if holder != DEFAULT_DIRECTORY else None
    return Labels(name=name, method=method, group=group, tags=_tags(method, *models, data))


def _joined(parts: Sequence[str]) -> str:
    return "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)


def _tags(*tags: str) -> list[str]:
    # W&B refuses empty tags and those beyond 64 characters.
    return [tag[:64] for tag in dict.fromkeys(tags) if tag]


def _models(values: Mapping[str, Any]) -> list[str]:
    """Return the models' names: of a training one, of an evaluation or a benchmark those it compares."""
    trained = values.get("trained")
    compared = [
        *([model_name(trained)] if trained else []),
        *(values.get("models") or {}),
        *(values.get("endpoints") or {}),
    ]
    if compared:
        return compared
    model = values.get("model") or {}
    path = model if isinstance(model, str) else model.get("path")
    if path:
        return [model_name(path)]
    if isinstance(model, Mapping) and model.get("hidden_size"):
        return [f"scratch-{model['hidden_size']}x{model.get('num_layers')}"]
    return []


def model_name(path: str) -> str:
    """Return the last part of a path or hub name; of a checkpoint, the name of its run."""
    parts = [part for part in Path(path).parts if part != "/"]
    if "checkpoints" in parts[1:]:
        parts = parts[: parts.index("checkpoints")]
    return parts[-1] if parts else str(path)


def _data(data: Mapping[str, Any]) -> str:
    where = data.get("path")
    return Path(where).stem if isinstance(where, str) and where else str(data.get("type") or "")


class NewLines:
    """The lines of a JSON-lines file that were appended since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = (0, 0)
        """(inode, bytes): a resumed or restarted run replaces the file by its beginning."""

    def of_step(self, step: int) -> list[dict[str, Any]]:
        """Return the new lines of `step`; those of other steps are passed over."""
        return [line for line in self._read() if line.get("step") == step]

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            file = open(self._path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(self._seen[1] if self._seen[0] == inode else 0, io.SEEK_SET)
            yield from records(file.read().splitlines())
            self._seen = (inode, file.tell())


def answer_tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
    """Return `answers/<set>`: prompts, answers and what was measured of them, from lines of answers.jsonl."""
    return {
        f"answers/{name}": _answer_table([line for line in lines if line.get("set") == name])
        for name in dict.fromkeys(str(line.get("set")) for line in lines)
    }


def _answer_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    metrics = list(dict.fromkeys(name for line in lines for name in line.get("metrics") or {}))
    rows = [
        [*(_text(line.get(key)) for key in ("sample_id", "prompt", "text", "gold")), *_picked(line, metrics)]
        for line in lines
    ]
    return Table(columns=["sample", "prompt", "answer", "gold", *metrics], rows=rows)


def sample_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return the held-out answers of the first and the last evaluation, from the lines of answers.jsonl."""
    steps = [line.get("step") for line in lines]
    ends = [line for line in lines if line.get("step") in (*steps[:1], *steps[-1:])]
    table = _answer_table(ends)
    rows = [[line.get("step"), *row] for line, row in zip(ends, table.rows, strict=True)]
    return Table(columns=["step", *table.columns], rows=rows)


def _picked(line: Mapping[str, Any], metrics: Sequence[str]) -> list[float | None]:
    known = line.get("metrics") or {}
    return [float(known[name]) if isinstance(known.get(name), int | float) else None for name in metrics]


def rollout_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Prompts, sampled answers and their rewards, from lines of rollouts.jsonl."""
    rows = [
        [line.get("step"), _text(line.get("sample_id")), _text(line.get("prompt")), _text(branch.get("text")), reward]
        for line in lines
        for branch in line.get("branches") or []
        for reward in [branch.get("score")]
    ]
    return Table(columns=["step", "sample", "prompt", "answer", "reward"], rows=rows)


def rewards_of(table: Table) -> list[float]:
    """Return the rewards that are there, of a `rollout_table`."""
    return [row[-1] for row in table.rows if row[-1] is not None]


def evaluation_tables(measured: Mapping[str, Any]) -> dict[str, Table]:
    """Return `evaluation/models` and `evaluation/comparisons` of a metrics.json: a row per model or pair."""
    found = {}
    for part in ("models", "comparisons"):
        rows = measured.get(part) or {}
        means = {name: {key: _mean(value) for key, value in row.items()} for name, row in rows.items()}
        columns = list(dict.fromkeys(key for row in means.values() for key in row))
        if rows:
            found[f"evaluation/{part}"] = Table(
                columns=[part.removesuffix("s"), *columns],
                rows=[[name, *(row.get(key) for key in columns)] for name, row in means.items()],
            )
    return found


def evaluation_metrics(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the means of a metrics.json: `evaluation/<model>/<metric>` and `evaluation/<a> against <b>/<metric>`."""
    return {
        f"evaluation/{name}/{key}": mean
        for part in ("models", "comparisons")
        for name, row in (measured.get(part) or {}).items()
        for key, value in row.items()
        if (mean := _mean(value)) is not None
    }


def _mean(value: Any) -> float | None:
    """Return a number, or the mean of a number with its interval."""
    mean = value.get("mean") if isinstance(value, Mapping) else value
    return float(mean) if isinstance(mean, int | float) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
