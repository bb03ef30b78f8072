"""Perplexities without any answer, computed once and kept in a file: by sample, for one scorer and one prompt.

JSONL (first line: what the file belongs to) or Parquet (the same in the schema's metadata), by the name's suffix. A
file of another model, tokenizer or template is refused with both hashes. How the numbers are computed is `actors`'
business.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from troupe.errors import CheckpointError, DataError, first_line
from troupe.files import JsonLines, iter_lines

HEADER = "baselines"
MAX_NATS = 80.0
"""Larger mean NLLs are shown as the perplexity of this one."""
COLUMNS = ("sample_id", "nll", "num_tokens", "digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that a file's numbers depend on, as short hashes (a model of the hub stands for itself)."""

    model: str
    tokenizer: str
    template: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One sample's gold answer without any answer before it.

    Example: `Baseline(sample_id="gsm8k/train/3", nll=2.31, num_tokens=2, digest="5f0c...")`, a perplexity of 10.1.
    """

    sample_id: str
    nll: float
    """Mean negative log-likelihood in nats per token."""
    num_tokens: int
    """Tokens of the gold answer."""
    digest: str
    """A hash of the prompt's and the gold answer's tokens."""


class BaselineFile:
    """The baselines of one identity, in a file that grows."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Read what the file, if there is one, has. Raises CheckpointError for one of another identity."""
        self.path, self.identity = path, identity
        self._known: dict[str, Baseline] = {}
        self._begun = path.is_file()
        if self._begun:
            found, rows = _read_parquet(path) if _is_parquet(path) else _read_jsonl(path)
            self._require_identity(found)
            self._known = {row["sample_id"]: Baseline(**{name: row[name] for name in COLUMNS}) for row in rows}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._known

    def nll(self, sample_id: str, digest: str) -> float:
        """Return the sample's mean NLL in nats. Raises CheckpointError where prompt or gold answer were others then."""
        baseline = self._known[sample_id]
        if baseline.digest != digest:
            raise CheckpointError(
                f"{self.path} has a baseline of another prompt or gold answer for {sample_id} ({baseline.digest} in "
                f"the file, {digest} now): the data changed; remove the file and run jobs/compute_baseline.py again"
            )
        return baseline.nll

    def perplexities(self) -> list[float]:
        """Return exp(nll) of every baseline."""
        return [math.exp(min(baseline.nll, MAX_NATS)) for baseline in self._known.values()]

    def require(self, sample_ids: Sequence[str]) -> None:
        """Raise DataError unless every sample has a baseline."""
        lacking = [sample_id for sample_id in sample_ids if sample_id not in self._known]
        if lacking:
            raise DataError(
                f"{self.path} lacks the baselines of {len(lacking)} of {len(sample_ids)} samples, {lacking[0]} the "
                "first; run jobs/compute_baseline.py with this recipe, which computes what is missing, or set "
                "perplexity_reward.baseline_file: null"
            )

    def add(self, baselines: Iterable[Baseline]) -> None:
        """Keep these, too; they are on disk when it returns."""
        fresh = list(baselines)
        self._known |= {baseline.sample_id: baseline for baseline in fresh}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if _is_parquet(self.path):
            _write_parquet(self.path, asdict(self.identity), [asdict(each) for each in self._known.values()])
            return
        header = [] if self._begun else [{HEADER: asdict(self.identity)}]
        JsonLines(self.path).append(*header, *map(asdict, fresh))
        self._begun = True

    def _require_identity(self, found: Mapping[str, Any] | None) -> None:
        wanted = asdict(self.identity)
        if found is None:
            raise CheckpointError(
                f"{self.path} is no file of jobs/compute_baseline.py (it does not say what it belongs to); name "
                f"another baseline_file"
            )
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            told = ", ".join(f"{name} {found.get(name)} in the file and {wanted[name]} now" for name in differing)
            raise CheckpointError(
                f"{self.path} is stale ({told}); remove it and run jobs/compute_baseline.py again, or name another "
                f"perplexity_reward.baseline_file"
            )


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _read_jsonl(path: Path) -> tuple[Mapping[str, Any] | None, list[dict[str, Any]]]:
    """Return (identity, rows); a line that a killed writer left unfinished is computed again."""
    lines = iter_lines(path)
    header = next(lines, {})
    return header.get(HEADER), [line for line in lines if set(COLUMNS) <= set(line)]


def _read_parquet(path: Path) -> tuple[Mapping[str, Any] | None, list[dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({first_line(error)}); remove it, or name another baseline_file"
        ) from None
    metadata = (table.schema.metadata or {}).get(HEADER.encode())
    rows = table.to_pylist() if set(COLUMNS) <= set(table.column_names) else []
    return None if metadata is None else json.loads(metadata), rows


def _write_parquet(path: Path, identity: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the whole file anew: its format has no appending. pyarrow is a part of `datasets`."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({HEADER: json.dumps(identity)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        parquet.write_table(table, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
