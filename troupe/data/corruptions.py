"""Ways to make a human summary worse: words moved, doubled or lost; cut in mid-sentence; replaced by another text's.

Each kind is a function of the summary and a seeded generator, and returns None where it has no grip. `docs/data.md`
shows an example of each; `troupe.data.docstrings` chooses among them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

from troupe.config.made_data import Damage
from troupe.data.near_duplicates import plain

TRIES = 8
"""Draws of a kind in its turn, until one differs from what there is: two swaps can undo each other."""
SENTENCE_ENDS = (".", "!", "?", ":", ";")


def damaged(
    summary: str, others: Sequence[str], kinds: Sequence[Damage], count: int, rng: random.Random
) -> Mapping[str, Damage]:
    """Return up to `count` worse versions of `summary` with their kinds, all different beyond their spelling.

    The kinds take turns in seeded order; one that has no grip on the summary leaves its turn to the next.
    """
    seen = {plain(summary)}
    found: dict[str, Damage] = {}
    for kind in islice(cycle(rng.sample(kinds, len(kinds))), len(kinds) * count):
        draws = (_one(kind, summary, others, rng) for _ in range(TRIES))
        text = next((draw for draw in draws if draw is not None and plain(draw) not in seen), None)
        if text is not None:
            seen.add(plain(text))
            found[text] = kind
        if len(found) == count:
            break
    return found


def _one(kind: Damage, summary: str, others: Sequence[str], rng: random.Random) -> str | None:
    if kind == "corrupted":
        return corrupted(summary, rng)
    if kind == "truncated":
        return truncated(summary, rng)
    return rng.choice(others) if others else None


def corrupted(summary: str, rng: random.Random) -> str | None:
    """Swap, double or drop words between the first and the last: one change and one more per four words.

    The first and the last word stay, so that capital and full stop give nothing away. None below three words.
    """
    words = summary.split()
    if len(words) < 3:
        return None
    for _ in range(1 + len(words) // 4):
        words = _changed(words, rng)
    return " ".join(words)


def _changed(words: list[str], rng: random.Random) -> list[str]:
    """Make one change inside: double or drop a word, or swap two that differ."""
    inside = range(1, len(words) - 1)
    swaps = [(i, j) for i in inside for j in inside if i < j and words[i] != words[j]]
    change = rng.choice(["double", "drop", "swap"] if swaps else ["double"])
    if change == "swap":
        i, j = rng.choice(swaps)
        return [*words[:i], words[j], *words[i + 1 : j], words[i], *words[j + 1 :]]
    at = rng.choice(inside)
    return words[:at] + words[at : at + 1] * (2 if change == "double" else 0) + words[at + 1 :]


def truncated(summary: str, rng: random.Random) -> str | None:
    """Return a third to two thirds of the words, never ending where a sentence does, no punctuation at the cut.

    Human summaries often lack a full stop too, so its absence alone proves nothing. None where no cut is left.
    """
    words = summary.split()
    first, last = max(2, len(words) // 3), 2 * len(words) // 3
    cuts = [cut for cut in range(first, last + 1) if not words[cut - 1].endswith(SENTENCE_ENDS)]
    return " ".join(words[: rng.choice(cuts)]).rstrip(" ,-–—(") if cuts else None
