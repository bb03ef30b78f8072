"""Preferences for real text without a download: the human summary of a docstring above damaged ones.

Texts, their ids and the split by package are those of `troupe.data.docstrings` for the same settings, so that a reward
model and a policy agree on what is held out. `troupe.data.corruptions` makes the worse summaries.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from troupe.config.data import DocstringPairsConfig
from troupe.data.corruptions import damaged
from troupe.data.dataset import DataSet, lasting_order
from troupe.data.docstrings import CACHE, load_docstrings
from troupe.records import Sample


def load_docstring_pairs(config: DocstringPairsConfig, cache: Path = CACHE) -> DataSet:
    texts = load_docstrings(config, cache)
    dropped: Counter[str] = Counter()
    return DataSet(
        name="docstring_pairs",
        train=_pairs(_half(texts.train, config), config, dropped),
        heldout=_pairs(texts.heldout, config, dropped),
        dropped=dropped,
    )


def _half(samples: Sequence[Sample], config: DocstringPairsConfig) -> Sequence[Sample]:
    """The asked half of the texts, in their order."""
    if config.half == "all":
        return samples
    ids = lasting_order((sample.sample_id for sample in samples), f"docstring_pairs/half/{config.seed}", str)
    middle = len(ids) // 2
    wanted = set(ids[:middle] if config.half == "first" else ids[middle:])
    return [sample for sample in samples if sample.sample_id in wanted]


def _pairs(samples: Sequence[Sample], config: DocstringPairsConfig, dropped: Counter[str]) -> list[Sample]:
    """Samples with answers; a wrong summary is that of another of these samples, so it crosses no split and no half."""
    summaries = [str(sample.gold) for sample in samples]
    pairs: list[Sample] = []
    for sample in samples:
        rng = random.Random(f"docstring_pairs/{config.damage_seed}/{sample.sample_id}")
        worse = damaged(str(sample.gold), summaries, config.kinds, config.pairs_per_text, rng)
        if worse:
            fields = {
                **sample.fields,
                "answers": [sample.gold, *worse],
                "ranks": [0, *(1 for _ in worse)],
                "damage": list(worse.values()),
            }
            pairs.append(dataclasses.replace(sample, fields=fields))
        else:
            dropped["not_damaged"] += 1
    return pairs
