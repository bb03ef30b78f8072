"""Real language without a download: the docstrings of the installed Python packages, text to one-line summary.

The prompt is what a docstring explains below its summary, the gold answer is the summary. Packages are split, not
pairs: the authors of a held-out text wrote nothing that was trained on. `troupe.data.docstring_scan` finds the pairs.

Preferences are made of the same texts, so that a reward model and a policy agree on what is held out: the human summary
above damaged ones, which `troupe.data.corruptions` makes.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from troupe.config.made_data import DocstringPairsConfig, HarvestConfig
from troupe.data.corruptions import damaged
from troupe.data.dataset import DataSet, conversation, lasting_order, shorten
from troupe.data.docstring_scan import Pair, harvest
from troupe.errors import DataError
from troupe.records import Sample


class HasPair(Protocol):
    """An item that is made of one docstring."""

    @property
    def pair(self) -> Pair: ...


Item = TypeVar("Item", bound=HasPair)

CACHE = Path(".cache/data")
MIN_HELDOUT_PACKAGES = 8
"""A package that would fill more than an eighth of the held-out set stays in training, as long as smaller ones
suffice.
"""


def load_docstrings(config: HarvestConfig, cache: Path = CACHE) -> DataSet:
    train, heldout = split_by_package(short_pairs(config, cache), config, "docstrings")
    return DataSet(
        name="docstrings",
        train=[_sample(pair, config) for pair in train],
        heldout=[_sample(pair, config) for pair in heldout[: config.num_heldout]],
    )


def short_pairs(config: HarvestConfig, cache: Path) -> list[Pair]:
    """Return the pairs whose summary is short enough."""
    return [pair for pair in harvest(config.roots, cache) if len(pair.summary) <= config.max_summary_chars]


def split_by_package(items: Sequence[Item], config: HarvestConfig, name: str) -> tuple[list[Item], list[Item]]:
    """Return the items of training packages in their order, and those of held-out packages in a lasting one.

    `items` are made of pairs, each of one.
    """
    held_out = _heldout_packages([item.pair for item in items], config)
    heldout = lasting_order(
        (item for item in items if item.pair.package in held_out),
        f"{name}/heldout/{config.seed}",
        lambda item: item.pair.place,
    )
    return [item for item in items if item.pair.package not in held_out], heldout


def _heldout_packages(pairs: Sequence[Pair], config: HarvestConfig) -> set[str]:
    """Choose packages in seeded order until they have enough pairs: small ones first, for a broad held-out set."""
    sizes: dict[str, int] = defaultdict(int)
    for pair in pairs:
        sizes[pair.package] += 1
    order = lasting_order(sizes, f"docstrings/packages/{config.seed}", str)
    small = max(1, config.num_heldout // MIN_HELDOUT_PACKAGES)
    order.sort(key=lambda package: max(small, sizes[package]))
    chosen: set[str] = set()
    num_chosen = 0
    for package in order[:-1]:
        if num_chosen >= config.num_heldout:
            break
        chosen.add(package)
        num_chosen += sizes[package]
    if num_chosen < config.num_heldout:
        raise DataError(
            f"{config.type}: {len(pairs)} pairs of {len(sizes)} packages are too few to hold out "
            f"{config.num_heldout} and "
            "keep a package for training; lower data.num_heldout or add data.roots"
        )
    return chosen


def _sample(pair: Pair, config: HarvestConfig) -> Sample:
    return Sample(
        sample_id=f"docstrings/{pair.place}",
        prompt=conversation(shorten(pair.text, config.max_prompt_chars)),
        gold=pair.summary,
        fields={"demonstration": pair.summary, "package": pair.package},
    )


# -- preferences ----------------------------------------------------------------------------------------------


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
    """Return the wanted half of the texts, in their order."""
    if config.half == "all":
        return samples
    ids = lasting_order((sample.sample_id for sample in samples), f"docstring_pairs/half/{config.seed}", str)
    middle = len(ids) // 2
    wanted = set(ids[:middle] if config.half == "first" else ids[middle:])
    return [sample for sample in samples if sample.sample_id in wanted]


def _pairs(samples: Sequence[Sample], config: DocstringPairsConfig, dropped: Counter[str]) -> list[Sample]:
    """Return samples with answers.

    A wrong summary is that of another of these samples, so it crosses no split and no half.
    """
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
