"""Rewards that tests name by address, in a module that loads in no time: their processes import it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from troupe.records import Branch, Sample, Score


def variety(sample: Sample, branch: Branch) -> float:
    """A reward that random answers differ in: the share of their tokens that are not repetitions."""
    return len(set(branch.token_ids)) / len(branch.token_ids)


def unhurried_variety(sample: Sample, branch: Branch) -> float:
    """The same, with a pause: so that a step takes long enough for a signal to arrive within it."""
    time.sleep(0.05)
    return variety(sample, branch)


def token_sum(sample: Sample, branch: Branch) -> float:
    return float(sum(branch.token_ids))


def token_sum_where_asked(sample: Sample, branch: Branch) -> float:
    return float(sum(branch.token_ids)) if sample.fields["signal"] else 1.0


def missing_where_asked(sample: Sample, branches: Sequence[Branch]) -> list[Score]:
    return [Score(value=None if index in sample.fields["missing"] else index) for index, _ in enumerate(branches)]


def not_a_number(sample: Sample, branch: Branch) -> float:
    return float("nan")


def raises(sample: Sample, branch: Branch) -> float:
    raise KeyError("no such\nanswer")


def brevity(sample: Sample, branch: Branch) -> float | Score:
    """One over the tokens of an answer; no judgement of an answer that begins with token 13."""
    return Score(value=None) if branch.token_ids[0] == 13 else 1 / len(branch.token_ids)


def brevity_in_words(sample: Sample, branch: Branch) -> float | Score:
    """One over the words of an answer; no judgement of one that begins with `no`."""
    return Score(value=None) if branch.text.startswith("no") else 1 / len(branch.text.split())


def broken(sample: Sample, branch: Branch) -> float:
    """A metric with a bug, which shows only once the answers are there."""
    raise RuntimeError("a bug")


def longer(sample: Sample, branch: Branch) -> float:
    """A judge that likes long answers."""
    other = sample.fields["against"]
    return 0.5 if len(branch.text) == len(other) else float(len(branch.text) > len(other))
