"""One-step arithmetic stories, made from a seed: the data set that a model of a million parameters learns in minutes.

Part of the demonstrations lacks the `#### n` line, so supervised training leaves something for reinforcement
to improve: a strict `math_answer` sees it at once. Nothing is downloaded.
"""

from __future__ import annotations

import random

from troupe.config.made_data import WordProblemsConfig
from troupe.data.dataset import DataSet, conversation
from troupe.errors import DataError
from troupe.records import Sample

NAMES = ("Tom", "Ana", "Li", "Sam", "Eva", "Omar", "Mia", "Raj", "Nia", "Ben")
ITEMS = ("apples", "books", "coins", "cards", "pens", "shells", "stamps", "nuts")
UNFORMATTED_ENDS = ("So the answer is {}.", "So the answer is {}.", "So the answer is {}.", "That makes {}.", "{}")
"""The first is more frequent than the wanted `#### {}`, so that greedy answers start without the format, too."""
MAX_ATTEMPTS = 1000
"""Draws in search of one new problem before the held-out set is declared too large."""


def load_word_problems(config: WordProblemsConfig) -> DataSet:
    """Make problems; held-out ones are distinct and occur nowhere in training, training ones may repeat one another."""
    heldout_rng = random.Random(f"word_problems/heldout/{config.seed}")
    train_rng = random.Random(f"word_problems/train/{config.seed}")
    heldout: dict[str, Sample] = {}
    for index in range(config.num_heldout):
        text, sample = _new_problem(heldout_rng, heldout, f"word_problems/heldout/{index}", config)
        heldout[text] = sample
    train = [
        _new_problem(train_rng, heldout, f"word_problems/train/{index}", config)[1] for index in range(config.num_train)
    ]
    assert heldout.keys().isdisjoint(sample.prompt[0]["content"] for sample in train)  # type: ignore[index]
    return DataSet(name="word_problems", train=train, heldout=list(heldout.values()))


def _new_problem(
    rng: random.Random, excluded: dict[str, Sample], sample_id: str, config: WordProblemsConfig
) -> tuple[str, Sample]:
    for _ in range(MAX_ATTEMPTS):
        text, calculation, result = _problem(rng, config.largest)
        demonstration = _demonstration(rng, calculation, result, config.unformatted_fraction)
        if text not in excluded:
            return text, Sample(
                sample_id=sample_id,
                prompt=conversation(text),
                gold=str(result),
                fields={"demonstration": demonstration},
            )
    raise DataError(
        f"word_problems: no new problem beside the {len(excluded)} held-out ones in {MAX_ATTEMPTS} draws; "
        f"lower data.num_heldout ({config.num_heldout})"
    )


def _problem(rng: random.Random, largest: int) -> tuple[str, str, int]:
    """Return (text, calculation, result), for example ("Tom has 3 pens and buys 5 more. ...", "3+5=8", 8)."""
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    match rng.choice(("add", "subtract", "multiply")):
        case "add":
            a, b = rng.randint(1, largest), rng.randint(1, largest)
            return f"{name} has {a} {items} and buys {b} more. How many {items} now?", f"{a}+{b}={a + b}", a + b
        case "subtract":
            a = rng.randint(2, largest)
            b = rng.randrange(1, a)
            text = f"{name} has {a} {items} and gives away {b}. How many {items} are left?"
            return text, f"{a}-{b}={a - b}", a - b
        case _:
            a, b = rng.randint(2, largest // 2), rng.randint(2, largest // 2)
            text = f"{name} fills {a} boxes with {b} {items} each. How many {items} in all?"
            return text, f"{a}*{b}={a * b}", a * b


def _demonstration(rng: random.Random, calculation: str, result: int, unformatted_fraction: float) -> str:
    unformatted, end = rng.random() < unformatted_fraction, rng.choice(UNFORMATTED_ENDS)
    last_line = end.format(result) if unformatted else f"#### {result}"
    return f"{calculation}\n{last_line}"
