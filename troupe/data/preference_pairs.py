"""Preferences as every loader leaves them: checked, best answer first, without those that prefer nothing.

A sample with `fields["answers"]` is a preference; `ranks` and `margin` say more of it. `data.load_data` calls this
once for every data set, so that no loader checks answers and no trainer meets bad ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

from troupe.chat import answer_text
from troupe.data.dataset import DataSet, Dropped
from troupe.errors import DataError
from troupe.records import Answer, Sample


def sort_answers(data: DataSet) -> DataSet:
    """Return the data set with its answers checked and sorted.

    Samples whose answers prefer nothing are dropped and counted.

    Raises DataError for a single or empty answer, ranks that do not fit the answers, and a margin that is no number.
    """
    dropped = Counter(data.dropped)
    train, heldout = (_sorted_side(side, dropped) for side in (data.train, data.heldout))
    return dataclasses.replace(data, train=train, heldout=heldout, dropped=dict(sorted(dropped.items())))


def _sorted_side(samples: Sequence[Sample], dropped: Counter[str]) -> list[Sample]:
    kept: list[Sample] = []
    for sample in samples:
        kept_sample = _sorted_sample(sample) if "answers" in sample.fields else sample
        if isinstance(kept_sample, Dropped):
            dropped[kept_sample.reason] += 1
        else:
            kept.append(kept_sample)
    return kept


def _sorted_sample(sample: Sample) -> Sample | Dropped:
    answers = _answers(sample)
    ranks = _ranks(sample, len(answers))
    _check_margin(sample, len(answers))
    if len(set(ranks)) == 1:
        return Dropped("tied_answers")
    if len({answer_text(answer).strip() for answer in answers}) == 1:
        return Dropped("equal_answers")
    if "ranks" not in sample.fields:
        return sample
    # The sort is stable: answers that tie keep their order.
    best_first = sorted(zip(ranks, answers, strict=True), key=itemgetter(0))
    fields = {
        **sample.fields,
        "answers": [answer for _, answer in best_first],
        "ranks": [rank for rank, _ in best_first],
    }
    return dataclasses.replace(sample, fields=fields)


def _answers(sample: Sample) -> list[Answer]:
    answers = sample.fields["answers"]
    if not isinstance(answers, list) or len(answers) < 2:
        raise DataError(
            f"{sample.sample_id}: a preference needs a list of two answers or more, got {answers!r:.60}; "
            "give the missing side, leave the sample out, or rename a field that is no preference"
        )
    for number, answer in enumerate(answers):
        if not isinstance(answer, str | list) or not answer_text(answer).strip():
            raise DataError(
                f"{sample.sample_id}: answer {number + 1} of {len(answers)} must be a text that is not empty, "
                f"got {answer!r:.60}; mend it or leave the sample out"
            )
    return answers


def _ranks(sample: Sample, num_answers: int) -> list[int]:
    ranks = sample.fields.get("ranks", list(range(num_answers)))
    if not isinstance(ranks, list) or not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in ranks):
        raise DataError(
            f"{sample.sample_id}: ranks must be a list of whole numbers, smaller is better, got {ranks!r:.60}"
        )
    if len(ranks) != num_answers:
        raise DataError(
            f"{sample.sample_id}: {len(ranks)} ranks for {num_answers} answers; give each answer one rank, equal "
            f"ones for a tie"
        )
    return ranks


def _check_margin(sample: Sample, num_answers: int) -> None:
    if "margin" not in sample.fields:
        return
    margin = sample.fields["margin"]
    if not isinstance(margin, (int, float)) or isinstance(margin, bool) or not math.isfinite(margin) or margin < 0:
        raise DataError(
            f"{sample.sample_id}: a margin must be a finite number that is not negative, got {margin!r:.60}"
        )
    if num_answers > 2:
        raise DataError(
            f"{sample.sample_id}: a margin is between two answers, but there are {num_answers}; leave the margin out"
        )
