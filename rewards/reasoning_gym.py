"""The scorers of reasoning_gym's tasks as a reward; the samples come from the data set of that name."""

from __future__ import annotations

import logging
import re
from typing import Any

from troupe.optional import optional
from troupe.records import Branch, Sample

log = logging.getLogger(__name__)


class ReasoningGym:
    """The score of the task's own scorer, from 0 to 1; many scorers give part of it for a near miss."""

    def __init__(self, *, tag: str | None = "answer") -> None:
        """Read the last `<answer>...</answer>`, or with `tag: null` the whole text."""
        self._library = optional("reasoning_gym", "the reward reasoning_gym")
        self._tag = tag
        self._scorers: dict[str, Any] = {}

    def check(self, sample: Sample) -> None:
        """Raise ValueError for a sample of another data set."""
        if "entry" not in sample.fields:
            raise ValueError("it has no entry of the library to score by; use data: {type: reasoning_gym}")

    def __call__(self, sample: Sample, branch: Branch) -> float:
        entry = sample.fields["entry"]
        task = entry["metadata"]["source_dataset"]
        scorer = self._scorers.get(task)
        if scorer is None:
            scorer = self._scorers[task] = self._library.get_score_answer_fn(task)
        answer = read_answer(branch.text, self._tag)
        try:
            return float(scorer(answer, entry))
        except Exception as error:  # scorers parse what a model wrote, and some do not catch all of it
            log.warning("%s: the scorer of %s failed on %.60r (%s); it counts 0", sample.sample_id, task, answer, error)
            return 0.0


def read_answer(text: str, tag: str | None) -> str | None:
    """Return the text of the last tag, None without one.

    >>> read_answer("<answer>3</answer> no: <answer> 4 </answer>", "answer")
    '4'
    >>> read_answer("4", "answer")
    """
    if tag is None:
        return text.strip()
    found = re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, re.DOTALL)
    return found[-1].strip() if found else None
