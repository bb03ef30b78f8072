"""The reward that compares an answer with the gold answer of a mathematical problem.

Strict is what training wants: the format is part of the task and nothing can be parsed by accident. Lenient is
what a comparison with other models wants; `troupe.rewards.mathematics` computes it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable
from decimal import Decimal

from troupe.records import Branch, Sample
from troupe.rewards.mathematics import same_mathematics

LAST_LINE = re.compile(r"(?:\A|\n)[ \t]*####[ \t]*([^\s#][^\n#]*)\Z")
BOXED = re.compile(r".*\\boxed\{([^{}]*)\}", re.DOTALL)
DECORATION = re.compile(r"\\[$%,!()\[\]]|[$%]")
"""Signs around or within a number that are no part of it."""
NUMBER = re.compile(
    r"((?:(?<!\w)-)?(?:(?:\d{1,3}(?:[, ]\d{2,3})*[, ]\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+))([eE][-+]?\d{1,3})?( ?/ ?\d+)?"
)
FORMULA = re.compile(r"[\\^√±*<>≤≥]|-\s+\.?\d|\d[a-zA-Z]\b|\d\s*[!+=]|\d\(")
"""What makes a text with one number more than that number: `3\\pi`, `2x`, `5!`."""


class MathAnswer:
    """1 if the answer is the gold number, else 0.

    Strict: the last line must be `#### ` and the gold number; commas, spaces and zeros after the point do not count.

    >>> def judge(gold, text):
    ...     return MathAnswer()(Sample(sample_id="s", prompt="?", gold=gold), Branch(token_ids=(), text=text))
    >>> judge("1234", "1000+234=1234\\n#### 1,234"), judge("$7.00", "#### 7")
    (1.0, 1.0)
    >>> judge("8", "3+5=8\\nSo the answer is 8."), judge("8", "#### 8\\nThank you!")
    (0.0, 0.0)

    Lenient: whatever math-verify reads as the final answer, compared as mathematics, is awaited.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self._strict = strict

    def check(self, sample: Sample) -> None:
        """Raise ValueError for a gold answer that no answer could equal."""
        if sample.gold is None or not sample.gold.strip():
            raise ValueError("the sample has no gold answer to compare with; name its column in data.gold_field")
        if self._strict:
            gold_number(sample.gold)

    def __call__(self, sample: Sample, branch: Branch) -> float | Awaitable[float]:
        self.check(sample)
        assert sample.gold is not None
        if not self._strict:
            return self._lenient(sample.gold, branch.text)
        found = LAST_LINE.search(branch.text.rstrip())
        return float(found is not None and plain_number(found[1]) == gold_number(sample.gold))

    async def _lenient(self, gold: str, text: str) -> float:
        return float(await same_mathematics(gold, text))


def plain_number(text: str) -> str:
    """Return a number as it is compared; a text that is none stays one that equals no number.

    >>> plain_number("1,234.50"), plain_number("7.0"), plain_number("08")
    ('1234.5', '7', '08')
    """
    number = re.sub(r"[\s,]", "", text)
    if re.fullmatch(r"-?\d*\.\d+", number):
        number = re.sub(r"(?<!\d)\.", "0.", number).rstrip("0").rstrip(".")
    return number


@functools.lru_cache(maxsize=65_536)
def gold_number(gold: str) -> str:
    """Return the one number of a gold answer: behind `####`, in a box, with a unit, a currency or commas.

    >>> [gold_number(text) for text in ("3+4=7\\n#### 7", "7.0", "\\\\boxed{7}", "$7", "7 apples", "1e3", "1/2 cup")]
    ['7', '7', '7', '7', '7', '1000', '1/2']
    """
    text = gold.rpartition("####")[2]
    boxed = BOXED.match(text)
    text = DECORATION.sub("", boxed[1] if boxed else text).replace("\u2212", "-")
    numbers = list(NUMBER.finditer(text))
    if len(numbers) != 1 or FORMULA.search(NUMBER.sub("0", text)):
        found = "holds no number" if not numbers else "is more than one plain number"
        raise ValueError(
            f"the gold answer {gold[-60:]!r} {found}, so no answer could be right; write the number alone or behind "
            "'#### ', or set `strict: false` for other mathematics"
        )
    digits, exponent, divisor = numbers[0].groups(default="")
    digits = plain_number(digits)
    if exponent:
        digits = plain_number(f"{Decimal(digits + exponent):f}")
    return digits + divisor.replace(" ", "")
