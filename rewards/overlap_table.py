"""All of ROUGE in one call, for evaluations: three variants, each as F1, recall and precision, and the mean of the F1.

Unlike the reward `rouge` it does not punish truncation, and words are compared unstemmed by default: so do the tables
of papers that use Hugging Face's `evaluate`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from troupe.records import Branch, Sample, Score

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

VARIANTS = ("rouge1", "rouge2", "rougeL")


def rouge_table(sample: Sample, branch: Branch, *, use_stemmer: bool = False) -> Score:
    """Overlap with the gold text (Lin 2004), 0 to 1; the value is (R1 + R2 + RL) / 3 of the F1.

    >>> score = rouge_table(Sample(sample_id="s", prompt="?", gold="one two three four"), Branch(token_ids=(), text="one two"))
    >>> score.parts["rouge1_recall"], score.parts["rouge1_precision"], round(score.parts["rouge2"], 3)
    (0.5, 1.0, 0.5)
    """
    if sample.gold is None or not sample.gold.strip():
        raise ValueError("the sample has no gold text to compare with")
    overlaps = _scorer(use_stemmer).score(sample.gold, branch.text)
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
def _scorer(use_stemmer: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(VARIANTS), use_stemmer=use_stemmer)
