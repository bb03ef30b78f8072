"""Near-duplicate texts, found by the five-word runs that they share: a copy cannot be on both sides of a split.

Libraries copy their docstrings (vendored packages, classes that inherit a text), mostly with small changes. Each
text is reduced to its 16 smallest hashes of such runs (Broder's sketch); a text that shares half of them with
an earlier one is its copy.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable

RUN_WORDS = 5
SKETCH_SIZE = 16


def plain(text: str) -> str:
    """Return letters and digits in lower case with one space between words: what remains of a text when it is copied.

    >>> plain("Return the  *sum*, rounded.")
    'return the sum rounded'
    """
    return " ".join(re.findall(r"\w+", text.lower()))


class NearDuplicates:
    """Remembers the texts it was shown and recognises copies of them; what counts as a copy is above."""

    def __init__(self) -> None:
        self._first_holder: dict[int, int] = {}
        self._num_texts = 0

    def is_new(self, text: str) -> bool:
        """Return whether `text` is no copy of an earlier one; only new texts are remembered."""
        sketch = _sketch(text)
        holders = Counter(self._first_holder[run] for run in sketch if run in self._first_holder)
        if holders and 2 * max(holders.values()) >= len(sketch):
            return False
        for run in sketch:
            self._first_holder.setdefault(run, self._num_texts)
        self._num_texts += 1
        return True


def _sketch(text: str) -> list[int]:
    words = plain(text).split()
    runs: Iterable[str] = (
        " ".join(words[start : start + RUN_WORDS]) for start in range(max(1, len(words) - RUN_WORDS + 1))
    )
    return sorted({zlib.crc32(run.encode()) for run in runs})[:SKETCH_SIZE]
