"""What the model wrote, as a report shows it: the sampled groups, the held-out answers, and before against after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from troupe.config.rollout import reward_label
from troupe.files import iter_lines, to_json
from troupe.report.report_data import RunRecord
from troupe.statistics import Estimate, estimate_difference

MOST_BYTES = 12_000_000
"""Of the groups in a page, as JSON: a page has at most 20 MB."""
SHOWN_PAIRS = 24
"""Held-out samples before and after of a set; the answers of all are among the groups."""
OPEN_PAIRS = 6

Group = dict[str, Any]
Row = Mapping[str, Any]


def kept_groups(run: RunRecord) -> tuple[list[Group], int]:
    """Return (groups of rollouts.jsonl and answers.jsonl, how many there are in the files).

    Where they are too large for a page, they are taken at equal distances, always with the last one.
    """
    answers = [_answer_group(run, row) for row in run.answers]
    rollouts = run.directory / "rollouts.jsonl"
    stride = max(1, (rollouts.stat().st_size if rollouts.is_file() else 0) // (2 * MOST_BYTES))
    while True:
        count, groups = _every(rollouts, stride)
        step = stride if _size(answers) > MOST_BYTES // 2 else 1
        groups = [*answers[::-step][::-1], *groups]
        if _size(groups) <= MOST_BYTES:
            return groups, count + len(answers)
        stride *= 2


def _every(path: Path, stride: int) -> tuple[int, list[Group]]:
    """Return how many groups a file has, and every `stride`-th of them with the last."""
    groups: list[Group] = []
    count, last = 0, None
    for count, last in enumerate(iter_lines(path), start=1):
        if (count - 1) % stride == 0:
            groups.append(_rollout_group(last))
    if last is not None and (count - 1) % stride:
        groups.append(_rollout_group(last))
    return count, groups


def _size(groups: Sequence[Group]) -> int:
    # As in the page, where the brackets of markup have six characters.
    return sum(len(text.encode("utf-8", "replace")) + 5 * sum(map(text.count, "<>&'")) for text in map(to_json, groups))


def _rollout_group(line: Row) -> Group:
    branches = [_without_doubled_text(branch) for branch in line.get("branches") or [] if isinstance(branch, Mapping)]
    return {"set": "", **{key: line.get(key) for key in ("step", "sample_id", "prompt", "gold")}, "branches": branches}


def _without_doubled_text(branch: Row) -> Row:
    return {key: value for key, value in branch.items() if key != "text"} if branch.get("turns") else branch


def _answer_group(run: RunRecord, row: Row) -> Group:
    """Return a held-out answer as a group of one, whose score is the metric that decides."""
    metrics = row.get("metrics") or {}
    deciding = run.best_name if run.best_name in metrics else next(iter(metrics), None)
    score = metrics.get(deciding)
    score = score if isinstance(score, int | float) else None
    branch = {**{key: row[key] for key in ("text", "turns") if key in row}, "score": score, "parts": metrics}
    named = {key: row.get(key) for key in ("set", "step", "sample_id", "prompt", "gold")}
    return {**named, "branches": [_without_doubled_text(branch)]}


def reward_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weight of each part of a score in its sum, by the name of the part."""
    named = {"reward_model": config.get("reward_model"), "perplexity": config.get("perplexity_reward")}
    named |= {reward_label(one["fn"], one.get("name")): one for one in config.get("rewards") or []}
    weights = {name: float(one.get("weight", 1.0)) for name, one in named.items() if one}
    return {"environment": 1.0, "agent": 1.0, **weights}


# -- before and after --------------------------------------------------------------------------------------------


def before_and_after(run: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield for every held-out set the same samples at its first and last evaluated step."""
    for name in dict.fromkeys(row.get("set") for row in run.answers):
        rows = [row for row in run.answers if row.get("set") == name]
        pairs = _pairs(rows)
        yield {
            "set": name,
            "count": len(pairs),
            "pairs": pairs[:SHOWN_PAIRS],
            "tally": _tally(run, pairs) if pairs and pairs[0][0] is not pairs[0][-1] else "",
        }


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, ...]]:
    """Return the rows of each sample at the first and the last step; one row where they are the same step."""
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    after = {row["sample_id"]: row for row in rows if row["step"] == last}
    before = [row for row in rows if row["step"] == first]
    if first == last:
        return [(row,) for row in before]
    return [(row, after[row["sample_id"]]) for row in before if row["sample_id"] in after]


def _tally(run: RunRecord, pairs: Sequence[tuple[Row, ...]]) -> str:
    """Say on how many samples the deciding metric rose, fell and stayed."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair[0].get("metrics", {})))
    name = run.best_name if run.best_name in names else next(iter(names), None)
    if name is None:
        return ""
    changes = [_number(new, name) - _number(old, name) for old, new in pairs]
    rose, fell = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return (
        f"{name.replace('_', ' ').capitalize()} rose on {rose}, fell on {fell}, stayed on {len(pairs) - rose - fell}."
    )


def _number(row: Row, name: str) -> float:
    value = row.get("metrics", {}).get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else 0.0


def change_within(run: RunRecord, metric: str) -> tuple[Estimate, int] | None:
    """Return by how much `eval/<set>/<metric>` changed over the kept answers, paired, and how many these are."""
    rows = _rows_of(run, metric)
    return paired_change([pair for pair in _pairs(rows) if len(pair) == 2], metric.partition("/")[2]) if rows else None


def difference_between(run: RunRecord, other: RunRecord, metric: str) -> tuple[Estimate, int] | None:
    """Return `other` less `run` at their last evaluations, over the samples of which both kept the answers."""
    ours, theirs = ({row["sample_id"]: row for row in _rows_of(one, metric)} for one in (run, other))
    same = [key for key in ours if key in theirs and ours[key].get("prompt") == theirs[key].get("prompt")]
    return paired_change([(ours[key], theirs[key]) for key in same], metric.partition("/")[2])


def _rows_of(run: RunRecord, metric: str) -> list[Row]:
    _, _, path = metric.partition("/")
    return [
        row
        for row in run.answers
        if path.removeprefix(f"{row.get('set')}/") in (row.get("metrics") or {}) and path != row.get("set")
    ]


def paired_change(pairs: Sequence[tuple[Row, ...]], name: str) -> tuple[Estimate, int] | None:
    """Estimate the change of `<set>/<metric>` over the pairs that have it twice, and count them; None without two."""
    both = [
        (_number(first, metric), _number(last, metric))
        for first, last in pairs
        if (metric := name.removeprefix(f"{last['set']}/")) in first["metrics"] and metric in last["metrics"]
    ]
    if len(both) < 2:
        return None
    before, after = zip(*both, strict=True)
    return estimate_difference(after, before), len(both)
