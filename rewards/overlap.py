"""ROUGE (Lin 2004): how many words, word pairs, or words in order an answer shares with the gold text.

The numbers are those of Google's `rouge-score`, which papers on summarisation report.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from troupe.records import Branch, Sample

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def rouge(
    sample: Sample,
    branch: Branch,
    *,
    variant: Literal["rouge1", "rouge2", "rougeL"] = "rougeL",
    statistic: Literal["f1", "recall", "precision"] = "f1",
    use_stemmer: bool = True,
    zero_if_truncated: bool = True,
    max_tokens: Annotated[int, Field(ge=1)] | None = None,
) -> float:
    """Overlap with the gold text, 0 to 1; an empty answer earns 0.

    `zero_if_truncated`: so does an answer that ran into the limit instead of ending. `max_tokens`: so does one of more
    tokens. Both keep a model from earning recall by not stopping.

    >>> def judge(gold, text, **args):
    ...     return rouge(Sample(sample_id="s", prompt="?", gold=gold), Branch(token_ids=(), text=text), **args)
    >>> judge("return the sum of the rows", "return the sum", statistic="recall")  # 3 of 6 words, in order
    0.5
    >>> judge("return the sum", "returns the sums"), judge("return the sum", "")
    (1.0, 0.0)
    """
    if sample.gold is None or not sample.gold.strip():
        raise ValueError("the sample has no gold text to compare with")
    too_long = max_tokens is not None and len(branch.token_ids) > max_tokens
    if too_long or not branch.text.strip() or (zero_if_truncated and branch.truncated):
        return 0.0
    overlap = _scorer(variant, use_stemmer).score(sample.gold, branch.text)[variant]
    return {"f1": overlap.fmeasure, "recall": overlap.recall, "precision": overlap.precision}[statistic]


@functools.cache
def _scorer(variant: str, use_stemmer: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([variant], use_stemmer=use_stemmer)
