"""Real text to foresee without a download: the next paragraph of a docstring, from its summary and earlier paragraphs.

Packages are split as in `troupe.data.docstrings`. Some training samples carry a plan made of words of the gold
paragraph: it teaches a small model the form of a plan, and a small frozen model what to do with one; nothing held out
ever has it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from troupe.config.algorithm import CONTEXT
from troupe.config.made_data import DocstringSectionsConfig
from troupe.data.dataset import DataSet, conversation, shorten
from troupe.data.docstring_scan import Pair
from troupe.data.docstrings import CACHE, short_pairs, split_by_package
from troupe.data.near_duplicates import plain
from troupe.records import Sample

CONTEXT_TEMPLATE = f"\n\nKey words: {CONTEXT}"
PLAN_REQUEST = "Name what comes next."
SECTION_REQUEST = "Write what comes next."
MIN_GOLD_WORDS = 8
COMMON_WORDS = 150
"""Words that the most paragraphs hold; they say nothing of a single one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A docstring up to one of its paragraphs, and that paragraph."""

    pair: Pair
    before: str
    gold: str


def load_docstring_sections(config: DocstringSectionsConfig, cache: Path = CACHE) -> DataSet:
    dropped: Counter[str] = Counter()
    passages = [passage for pair in short_pairs(config, cache) for passage in _passages(pair, config, dropped)]
    train, heldout = split_by_package(passages, config, "docstring_sections")
    common = _common_words(train)
    return DataSet(
        name="docstring_sections",
        train=[_sample(passage, config, _drawn_plan(passage, config, common)) for passage in train],
        heldout=[_sample(passage, config, None) for passage in heldout[: config.num_heldout]],
        dropped=dropped,
    )


def _passages(pair: Pair, config: DocstringSectionsConfig, dropped: Counter[str]) -> list[Passage]:
    """Return at most one passage of a docstring, drawn among its paragraphs that can be foreseen."""
    paragraphs = [pair.summary, *paragraphs_of(pair.text)]
    fitting = [
        number
        for number in range(1, len(paragraphs))
        if config.min_gold_chars <= len(paragraphs[number]) <= config.max_gold_chars
        and len(paragraphs[number].split()) >= MIN_GOLD_WORDS
        and ">>>" not in paragraphs[number]
    ]
    if not fitting:
        dropped["no_paragraph_of_that_length"] += 1
        return []
    number = random.Random(f"docstring_sections/{config.seed}/{pair.place}").choice(fitting)
    before, gold = _end_of("\n\n".join(paragraphs[:number]), config.max_prompt_chars), paragraphs[number]
    if plain(gold) in plain(before):
        dropped["gold_in_prompt"] += 1
        return []
    return [Passage(pair=pair, before=before, gold=gold)]


def paragraphs_of(text: str) -> list[str]:
    """Return the parts between blank lines; a heading belongs to what stands under it.

    >>> paragraphs_of("Returns\\n-------\\n\\nThe sum.\\n\\nNote:\\n\\nIt is rounded.")
    ['Returns\\n-------\\nThe sum.', 'Note:\\nIt is rounded.']
    """
    paragraphs: list[str] = []
    heading = ""
    for part in re.split(r"\n[ \t]*\n", text):
        body = heading + part.strip("\n").rstrip()
        last = body.rstrip().rpartition("\n")[2].strip()
        # `Returns` above a rule of dashes, or a short line that ends with a colon, opens what follows.
        if re.fullmatch(r"([-=~^])\1+", last) or ("\n" not in body and len(body) < 30 and last.endswith(":")):
            heading = body + "\n"
        elif body.strip():
            paragraphs.append(body)
            heading = ""
    return paragraphs


def _end_of(text: str, max_chars: int) -> str:
    """Return the end of a long text, which is what the next paragraph follows.

    Its beginning gives way at a line's end.
    """
    if len(text) <= max_chars:
        return text
    return text[-max_chars:].partition("\n")[2].strip() or shorten(text, max_chars)


def _sample(passage: Passage, config: DocstringSectionsConfig, plan: str | None) -> Sample:
    scorer_prompt = f"{passage.before}\n\n{SECTION_REQUEST}"
    demonstration: str | None
    if config.task == "plan":
        prompt, demonstration = f"{passage.before}\n\n{PLAN_REQUEST}", plan and f"{config.marker} {plan}"
    else:
        prompt, demonstration = scorer_prompt + (CONTEXT_TEMPLATE.replace(CONTEXT, plan) if plan else ""), passage.gold
    return Sample(
        sample_id=f"docstring_sections/{passage.pair.place}",
        prompt=conversation(prompt),
        gold=passage.gold,
        fields={
            "package": passage.pair.package,
            "scorer_prompt": conversation(scorer_prompt),
            "context_template": CONTEXT_TEMPLATE,
            **({"demonstration": demonstration} if demonstration else {}),
        },
    )


def _drawn_plan(passage: Passage, config: DocstringSectionsConfig, common: set[str]) -> str | None:
    """Return a plan for a share of the passages, drawn by place, so that none depends on the others."""
    rng = random.Random(f"docstring_sections/plan/{config.seed}/{passage.pair.place}")
    if rng.random() >= config.plan_share:
        return None
    return ", ".join(_telling_words(passage.gold, common)[: config.plan_words]) or None


def _telling_words(text: str, common: set[str]) -> list[str]:
    """Return words of a paragraph that not every paragraph has, in their order, each once."""
    return [word for word in dict.fromkeys(_words(text)) if word not in common]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{4,}", text.lower())


def _common_words(passages: Sequence[Passage]) -> set[str]:
    counts = Counter(word for passage in passages for word in set(_words(passage.gold)))
    # Words first by count, then by spelling: ties must not depend on the order of a set.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word for word in ranked[:COMMON_WORDS] if counts[word] > 1}
