"""Rewards that compare an answer with the gold answer of a mathematical problem.

Strict is what training wants: the format is part of the task and nothing can be parsed by accident. Lenient is
what a comparison with other models wants.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

from core.records import Branch, Sample

LAST_LINE = re.compile(r"(?:\A|\n)[ \t]*####[ \t]*([^\s#][^\n#]*)\Z")
MAX_DIGITS = 10_000
"""Longest number, in digits, that an answer may make us compute."""
LARGE_BINOMIAL = re.compile(r"binom.{0,40}?\d{5}", re.DOTALL)


def math_answer(sample: Sample, branch: Branch, *, strict: bool = True) -> float:
    """1 if the answer is the gold number, else 0.

    Strict: the last line must be `#### ` and the gold number; commas and spaces in it do not count.

    >>> def judge(gold, text, **args):
    ...     return math_answer(Sample(sample_id="s", prompt="?", gold=gold), Branch(token_ids=(), text=text), **args)
    >>> judge("1234", "1000+234=1234\\n#### 1,234")
    1.0
    >>> judge("8", "3+5=8\\nSo the answer is 8."), judge("8", "#### 8\\nThank you!")
    (0.0, 0.0)

    Lenient: whatever math-verify reads as the final answer, compared as mathematics.

    >>> judge("8", "So the answer is 8.", strict=False), judge("1/2", "It is $\\\\frac{2}{4}$.", strict=False)
    (1.0, 1.0)
    """
    if sample.gold is None or not sample.gold.strip():
        raise ValueError("the sample has no gold answer to compare with")
    if strict:
        found = LAST_LINE.search(branch.text.rstrip())
        return float(found is not None and _number(found[1]) == _number(sample.gold))
    return float(_same_mathematics(sample.gold, branch.text))


def _number(text: str) -> str:
    return re.sub(r"[\s,]", "", text)


def _same_mathematics(gold: str, answer: str) -> bool:
    from math_verify import verify  # seconds of import that the strict rule does not need

    if LARGE_BINOMIAL.search(answer):
        return False
    parsed = _parsed(answer)
    if any(_digits(candidate) > MAX_DIGITS for candidate in parsed):
        return False
    return verify(_parsed_gold(gold), parsed, timeout_seconds=None)


@functools.lru_cache(maxsize=4096)
def _parsed_gold(gold: str) -> list[Any]:
    is_bare_latex = "\\" in gold and "$" not in gold  # outside dollars only its first number would be read
    parsed = ([] if is_bare_latex else _parsed(gold)) or _parsed(f"${gold}$")
    if all(isinstance(candidate, str) for candidate in parsed):
        raise ValueError(f"the gold answer {gold!r} is no mathematics that math-verify can read")
    return parsed


def _parsed(text: str) -> list[Any]:
    import math_verify.grader
    import math_verify.parser

    # Its timeouts are alarm signals, which only the main thread may set; having none, it warns once, which we know.
    math_verify.parser.TIMEOUT_WARNING_SHOWN = math_verify.grader.TIMEOUT_WARNING_SHOWN = True
    return math_verify.parse(text, parsing_timeout=None)


def _digits(expression: Any) -> float:
    """A bound on the digits of an unevaluated expression's value, found without computing it.

    `9^{9^{9}}` has 370 million digits. Sympy would compute them in one call that no signal and no thread interrupts.
    """
    from sympy import Pow, factorial

    if getattr(expression, "is_Number", False):
        return len(str(expression))
    arguments: list[Any] = list(getattr(expression, "args", ()))
    if isinstance(expression, Pow):
        return _digits(arguments[0]) * max(1.0, _size(arguments[1]))
    if isinstance(expression, factorial):
        size = _size(arguments[0])
        return size * math.log10(size + 1) if math.isfinite(size) else math.inf
    return sum((_digits(argument) for argument in arguments), start=1.0)


def _size(exponent: Any) -> float:
    """The magnitude of an exponent, infinity where that cannot be computed quickly; 1 with variables."""
    if exponent.free_symbols:
        return 1.0
    if _digits(exponent) > 20:
        return math.inf
    try:
        return abs(complex(exponent.evalf()))
    except (TypeError, ValueError):  # no number at all, such as a set
        return math.inf
