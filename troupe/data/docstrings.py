"""Real language without a download: the docstrings of the installed Python packages, text to one-line summary.

The prompt is what a docstring explains below its summary, the gold answer is the summary. Packages are split, not
pairs: whoever wrote a held-out text wrote nothing that was trained on. `troupe.data.docstring_scan` finds the pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from troupe.config.data import HarvestConfig
from troupe.data.dataset import DataSet, conversation, lasting_order, shorten
from troupe.data.docstring_scan import Pair, harvest
from troupe.errors import DataError
from troupe.records import Sample

CACHE = Path(".cache/data")
MIN_HELDOUT_PACKAGES = 8
"""A package that would fill more than an eighth of the held-out set stays in training, as long as smaller ones suffice."""


def load_docstrings(config: HarvestConfig, cache: Path = CACHE) -> DataSet:
    pairs = [pair for pair in harvest(config.roots, cache) if len(pair.summary) <= config.max_summary_chars]
    held_out = heldout_packages(pairs, config)
    train = [pair for pair in pairs if pair.package not in held_out]
    heldout = lasting_order(
        (pair for pair in pairs if pair.package in held_out),
        f"docstrings/heldout/{config.seed}",
        lambda pair: pair.place,
    )
    return DataSet(
        name="docstrings",
        train=[_sample(pair, config) for pair in train],
        heldout=[_sample(pair, config) for pair in heldout[: config.num_heldout]],
    )


def heldout_packages(pairs: Sequence[Pair], config: HarvestConfig) -> set[str]:
    """Packages in seeded order, until they have enough pairs: small ones first, so that the held-out set is broad."""
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
            f"{config.type}: {len(pairs)} pairs of {len(sizes)} packages are too few to hold out {config.num_heldout} and "
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
