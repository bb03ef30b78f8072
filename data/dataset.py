"""What every data set hands over: training samples and held-out samples under one name.

The loaders beside this file build it; `data.load_data` checks it. The order of training is `data.stream`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.records import Message, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Samples of one data set; the names of metrics such as `eval/<name>/accuracy` come from here.

    Example: `DataSet(name="gsm8k", train=[7473 samples], heldout=[1319 samples])`.
    """

    name: str
    train: Sequence[Sample]
    heldout: Sequence[Sample]


def conversation(user: str, *, system: str | None = None) -> list[Message]:
    """A prompt of one user turn, behind a system message if there is one."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": user}]
