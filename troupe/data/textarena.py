"""Games of TextArena to be played: the prompt is the game's opening, the seed is what else it begins with."""

from __future__ import annotations

import random

from troupe.config.libraries import TextArenaConfig
from troupe.data.dataset import DataSet, conversation
from troupe.environments.textarena import GAME, SEED, TextArena
from troupe.records import Sample


def load_textarena(config: TextArenaConfig) -> DataSet:
    """Make the openings."""
    sizes = {"train": config.num_train, "heldout": config.num_heldout}
    sides = {side: [_opening(config, side, index) for index in range(size)] for side, size in sizes.items()}
    return DataSet(name="textarena", train=sides["train"], heldout=sides["heldout"])


def _opening(config: TextArenaConfig, side: str, index: int) -> Sample:
    sample_id = f"textarena/{config.name}/{side}/{index}"
    seed = random.Random(f"{sample_id}/{config.seed}").getrandbits(31)
    text = TextArena(name=config.name, **config.args).begin(seed)
    return Sample(
        sample_id=sample_id,
        prompt=conversation(text),
        fields={GAME: config.name, SEED: seed},
    )
