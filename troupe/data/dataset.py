"""What every data set hands over: training samples and held-out samples under one name, and what was left out.

The loaders beside this file build it; `data.load_data` checks it. The order of training is `troupe.data.stream`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from troupe.config.data_section import DataSection
from troupe.config.libraries import CurriculumConfig
from troupe.records import Message, Sample

Item = TypeVar("Item")

SOURCE = "source"
"""Field of a sample with the source that it is from, in a mixture."""
LEVEL = "level"
"""Field with the level that a sample is on, in a curriculum, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Samples of one data set; the names of metrics such as `eval/<name>/accuracy` come from here.

    Example: `DataSet(name="tldr_comparisons", train=[89,000 samples], heldout=[5000 samples],
    dropped={"short_answers": 3200, "equal_answers": 41})`.
    """

    name: str
    train: Sequence[Sample]
    heldout: Sequence[Sample]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows that a filter left out, of both sides together, by reason; a row that no filter saw is not counted."""
    from_one_file: bool = False
    """Whether the held-out rows were chosen among the training rows."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of a mixture, how often each source is drawn from, in proportion; a sample's source is in its fields."""
    curriculum: CurriculumConfig | None = None
    """How a rollout climbs the levels of each source; elsewhere all levels are drawn alike."""
    others: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """Further held-out sets by name."""
    own_ids: bool = False
    """Whether a sample's id is the row's own, wherever in the file it stands."""

    def heldout_sets(self, limit: int | None) -> dict[str, Sequence[Sample]]:
        """Return at most `limit` samples of every held-out set: its own, of a mixture each source's part, the others.

        Those of its own set come first.
        """
        own = self.heldout[:limit]
        parts = {name: [sample for sample in own if sample.fields[SOURCE] == name] for name in self.weights}
        return {self.name: own, **parts, **{name: samples[:limit] for name, samples in self.others.items()}}

    def key(self, sample: Sample) -> str:
        """Return what a sample is recognised by when its file has grown: its own id, or a hash of its content."""
        if self.own_ids:
            return sample.sample_id
        told = [sample.fields.get(name) for name in ("demonstration", "answers", "seed")]
        return hashlib.sha256(repr((sample.prompt, sample.gold, *told)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Dropped:
    """In place of a sample: a row that a filter leaves out, and the name under which it is counted."""

    reason: str


def named(source: str, samples: Sequence[Sample]) -> list[Sample]:
    """Return samples with the name of their source in their ids and fields."""
    return [
        replace(sample, sample_id=f"{source}/{sample.sample_id}", fields={**sample.fields, SOURCE: source})
        for sample in samples
    ]


def conversation(user: str, *, system: str | None = None) -> list[Message]:
    """Return a prompt of one user turn, behind a system message if there is one."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": user}]


def behind_system_prompt(prompt: str | list[Message], config: DataSection) -> str | list[Message]:
    """Return a prompt behind the section's system prompt; as it is where there is none."""
    if config.system_prompt is None:
        return prompt
    messages = conversation(prompt) if isinstance(prompt, str) else prompt
    return with_system(messages, config.system_prompt, wins=config.system_prompt_wins)


def with_system(messages: list[Message], system: str, *, wins: bool) -> list[Message]:
    """Return the messages behind a system turn; one that they have themselves stays, unless the new one `wins`."""
    own = messages[0]["role"] in ("system", "developer")
    if own and not wins:
        return messages
    return [{"role": "system", "content": system}, *messages[own:]]


def lasting_order(items: Iterable[Item], purpose: str, name: Callable[[Item], str]) -> list[Item]:
    """Return `items` in an order drawn from `purpose` (with the seed in it) and from each one's name alone.

    Another item coming or going moves none of the others, as a shuffle would: a package installed later leaves the
    split of the installed ones as it was.
    """
    return sorted(items, key=lambda item: hashlib.sha256(f"{purpose}/{name(item)}".encode()).digest())


HELDOUT_SHARE, MOST_HELDOUT = 0.1, 256


def hold_out(
    items: Sequence[Item], wanted: int | None, purpose: str, name: Callable[[Item], str]
) -> tuple[list[Item], list[Item]]:
    """Return (training items in their order, held-out items): `wanted`, or about a tenth, at least 1, at most 256.

    What is held out follows from an item's name alone, and names that are equal stay together. More items may take an
    item from the held-out side to training, never the other way, so that nothing is measured on what was trained on.
    """
    groups: dict[bytes, list[Item]] = {}
    for item in items:
        groups.setdefault(hashlib.sha256(f"{purpose}/{name(item)}".encode()).digest(), []).append(item)
    most = MOST_HELDOUT if wanted is None else wanted
    chosen: dict[bytes, list[Item]] = {}
    for digest in sorted(groups):
        beyond = wanted is None and chosen and int.from_bytes(digest, "big") >= HELDOUT_SHARE * 2**256
        if beyond or sum(map(len, chosen.values())) >= most:
            break
        chosen[digest] = groups.pop(digest)
    kept = {id(item) for group in groups.values() for item in group}
    return [item for item in items if id(item) in kept], [item for group in chosen.values() for item in group]


def shorten(text: str, max_chars: int) -> str:
    """Return the beginning of `text`, cut at a line's end, or between words where that would lose more than half of it.

    >>> shorten("one two\\nthree four", 12)
    'one two'
    >>> shorten("one two three", 8)
    'one two'
    """
    if len(text) <= max_chars:
        return text
    head = text[: max_chars + 1]
    for separator in ("\n", " "):
        cut = head.rfind(separator)
        if 2 * cut >= max_chars:
            return head[:cut].rstrip()
    return text[:max_chars].rstrip()
