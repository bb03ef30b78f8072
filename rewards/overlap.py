"""ROUGE (Lin 2004): how many words, word pairs, or words in order an answer shares with the gold text.

The numbers are those of Google's `rouge-score`, which papers on summarisation report.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from troupe.records import Branch, Sample, Score

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

VARIANTS = ("rouge1", "rouge2", "rougeL")


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
    """Return the overlap with the gold text, 0 to 1; an empty answer earns 0.

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
    overlap = _scorer((variant,), use_stemmer).score(sample.gold, branch.text)[variant]
    return {"f1": overlap.fmeasure, "recall": overlap.recall, "precision": overlap.precision}[statistic]


def rouge_table(sample: Sample, branch: Branch, *, use_stemmer: bool = False) -> Score:
    """Return all variants as F1, recall and precision, for evaluations; the value is the mean of the three F1.

    Unlike `rouge` it does not punish truncation, and words are compared unstemmed by default: so do the tables of
    papers that use Hugging Face's `evaluate`.

    >>> answer = Branch(token_ids=(), text="one two")
    >>> score = rouge_table(Sample(sample_id="s", prompt="?", gold="one two three four"), answer)
    >>> score.parts["rouge1_recall"], score.parts["rouge1_precision"], round(score.parts["rouge2"], 3)
    (0.5, 1.0, 0.5)
    """
    if sample.gold is None or not sample.gold.strip():
        raise ValueError("the sample has no gold text to compare with")
    overlaps = _scorer(VARIANTS, use_stemmer).score(sample.gold, branch.text)
    parts: dict[str, float] = {}
    for variant in VARIANTS:
        overlap = overlaps[variant]
        parts |= {
            variant: overlap.fmeasure,
            f"{variant}_recall": overlap.recall,
            f"{variant}_precision": overlap.precision,
        }
    return Score(value=sum(parts[variant] for variant in VARIANTS) / len(VARIANTS), parts=parts)


@functools.cache
def _scorer(variants: tuple[str, ...], use_stemmer: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(variants), use_stemmer=use_stemmer)
