"""Rows of a file or samples of a data set, split so that what belongs together stays together.

`jobs/prepare_data.py` tells the story around it: what is read, printed and written.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from troupe.chat import prompt_text
from troupe.config.own_data import RowFilterConfig
from troupe.data.dataset import DataSet
from troupe.data.filters import left_out, text_in
from troupe.data.lines import Row, read_rows, text_of
from troupe.errors import DataError
from troupe.records import Sample

SHOWN_ONCE = ("id", "prompt", "gold", "demonstration")
"""Columns that a sample is written with beside its fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A row to write, what it must stay together with, and its texts for the statistics."""

    key: str
    row: Row
    texts: Mapping[str, str]


def items_of_file(path: Path, key: str | None, filters: Sequence[RowFilterConfig], dropped: Counter[str]) -> list[Item]:
    """Return the rows of a JSONL file that pass the filters; of equal rows the first.

    `dropped` counts the others by reason.
    """
    return items_of_rows(((where, row) for _, where, row in read_rows(path)), key, filters, dropped)


def items_of_rows(
    rows: Iterable[tuple[str, Row]], key: str | None, filters: Sequence[RowFilterConfig], dropped: Counter[str]
) -> list[Item]:
    """Return rows with their places as `items_of_file`."""
    items: list[Item] = []
    seen: set[str] = set()
    for where, row in rows:
        content = json.dumps(row, sort_keys=True)
        reason = "equal_rows" if content in seen else left_out(row, filters, where)
        seen.add(content)
        if reason is not None:
            dropped[reason] += 1
            continue
        texts = {name: text for name, text in _texts(row).items() if text and name != key}
        items.append(Item(key=where if key is None else text_of(row, key, where), row=row, texts=texts))
    return items


def items_of_samples(data: DataSet, key: str | None) -> list[Item]:
    """Return the samples of both sides, as rows that `jsonl` reads back (`id_field: id`, `gold_field: gold`)."""
    return [_item(sample, key) for sample in (*data.train, *data.heldout)]


def _item(sample: Sample, key: str | None) -> Item:
    fields = {name: value for name, value in sample.fields.items() if name != "demonstration"}
    clash = [name for name in SHOWN_ONCE if name in fields]
    if clash:
        raise DataError(
            f"{sample.sample_id}: its field {clash[0]!r} would overwrite the sample's own; rename that column"
        )
    demonstration = sample.fields.get("demonstration")
    row = {
        "id": sample.sample_id,
        "prompt": sample.prompt,
        "gold": sample.gold,
        "demonstration": demonstration,
        **fields,
    }
    texts = {"prompt": prompt_text(sample), "gold": sample.gold or "", "demonstration": demonstration or ""}
    return Item(
        key=prompt_text(sample) if key is None else text_of(sample.fields, key, sample.sample_id),
        row=row,
        texts={name: text for name, text in texts.items() if text},
    )


def _texts(row: Row) -> dict[str, str]:
    """Return the texts of a row by field; of a chat its last turn, which is the gold answer, stands apart."""
    texts: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[-1], Mapping) and "role" in value[-1]:
            texts[f"{name}, prompt"], texts[f"{name}, last turn"] = text_in(value[:-1]), text_in(value[-1])
        else:
            texts[name] = text_in(value)
    return texts


def split(items: Sequence[Item], shares: Mapping[str, float], *, seed: int, key: str | None) -> dict[str, list[Item]]:
    """Return the items of each share.

    Keys are taken in seeded order: a smaller share gets those that still fit it, the largest the rest.

    None stays empty: a share that would come to less than one key gets the next one all the same. Raises DataError when
    there are fewer keys than shares.
    """
    by_key: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_key[item.key].append(item)
    if len(by_key) < len(shares):
        named = key or "rows"
        raise DataError(
            f"{len(by_key)} different {named} are too few for {len(shares)} files ({', '.join(shares)}): none may "
            f"stay empty, and what "
            "belongs together stays together; give more rows, or fewer shares"
        )
    keys = sorted(by_key)
    random.Random(f"prepare/{seed}").shuffle(keys)
    parts: dict[str, list[Item]] = {}
    by_size = sorted(shares, key=lambda name: shares[name])
    for position, name in enumerate(by_size[:-1]):
        others = len(shares) - position - 1  # each of which needs a key, too
        taken = _fitting(by_key, keys, wanted=shares[name] * len(items), at_most=len(keys) - others)
        parts[name] = [item for each in taken for item in by_key[each]]
        keys = [each for each in keys if each not in taken]
    parts[by_size[-1]] = [item for each in keys for item in by_key[each]]
    return {name: parts[name] for name in shares}


def _fitting(
    by_key: Mapping[str, Sequence[Item]], keys: Sequence[str], *, wanted: float, at_most: int
) -> dict[str, None]:
    """Return keys that together have about `wanted` rows and no more; at least one, at most so many.

    Ordered as they come.
    """
    taken: dict[str, None] = {}
    size = 0
    for key in keys:
        if len(taken) < at_most and size + len(by_key[key]) <= round(wanted):
            taken[key] = None
            size += len(by_key[key])
    return taken or {min(keys, key=lambda key: len(by_key[key])): None}


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Return mean, smallest, median, 95 % and largest; the quantiles are values that occur (nearest rank).

    >>> quantiles([1, 2, 3, 10])
    {'mean': 4.0, 'min': 1, 'median': 2, 'p95': 10, 'max': 10}
    """
    ordered = sorted(values)
    rank = {share: ordered[max(0, -(-share * len(ordered) // 100) - 1)] for share in (50, 95)}
    return {
        "mean": round(sum(ordered) / len(ordered), 2),
        "min": ordered[0],
        "median": rank[50],
        "p95": rank[95],
        "max": ordered[-1],
    }


def rows_hash(items: Iterable[Item]) -> str:
    """Return a SHA-256 of all rows, whatever their order: what a hub or the installed packages gave."""
    hashes = sorted(
        hashlib.sha256(json.dumps(item.row, sort_keys=True, default=str).encode()).digest() for item in items
    )
    return hashlib.sha256(b"".join(hashes)).hexdigest()
