"""Rewards that look at an answer's form alone: its pattern and its length.

They never look at the gold answer, so they are usually a small part of a weighted sum.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from troupe.records import Branch, Sample

Unit = Literal["tokens", "words", "chars"]


def regex_format(
    sample: Sample, branch: Branch, *, pattern: re.Pattern[str], match: Literal["full", "search"] = "full"
) -> float:
    """Return 1 if the whole answer matches `pattern` (match: full), or some part of it does (match: search), else 0.

    Flags stand in the pattern: `(?s)` lets a dot match line ends.

    >>> def judge(text, **args):
    ...     return regex_format(Sample(sample_id="s", prompt="?"), Branch(token_ids=(), text=text), **args)
    >>> judge("<think>3+5</think>8", pattern=re.compile(r"(?s)<think>.*</think>.+"))
    1.0
    >>> judge("8", pattern=re.compile(r"#### \\d+"), match="search")
    0.0
    """
    found = pattern.fullmatch(branch.text) if match == "full" else pattern.search(branch.text)
    return float(found is not None)


class Length:
    """Without `target` a gate: 1 up to `limit`, 0 beyond. With it: 1 up to `target`, falling linearly to 0 at `limit`.

    >>> def judge(text, **args):
    ...     return Length(**args)(Sample(sample_id="s", prompt="?"), Branch(token_ids=(), text=text))
    >>> judge("one two three", limit=3, unit="words"), judge("one two three", limit=2, unit="words")
    (1.0, 0.0)
    >>> judge("one two three", target=2, limit=4, unit="words")
    0.5
    """

    def __init__(
        self,
        *,
        limit: Annotated[int, Field(ge=1)],
        target: Annotated[int, Field(ge=0)] | None = None,
        unit: Unit = "tokens",
    ) -> None:
        if target is not None and target >= limit:
            raise ValueError(f"target ({target}) must be below limit ({limit})")
        self._limit, self._target = limit, target
        self._unit: Unit = unit

    def __call__(self, sample: Sample, branch: Branch) -> float:
        size = size_of(branch, self._unit)
        if self._target is None:
            return float(size <= self._limit)
        return min(1.0, max(0.0, (self._limit - size) / (self._limit - self._target)))


def size_of(branch: Branch, unit: Unit) -> int:
    """Return the answer's length; ValueError for tokens of an answer that is known as text only."""
    if unit == "tokens":
        if branch.text and not branch.token_ids:
            raise ValueError("the answer is known as text only, without its tokens; set unit: words or chars")
        return len(branch.token_ids)
    return len(branch.text.split()) if unit == "words" else len(branch.text)
