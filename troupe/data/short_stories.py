"""Stories made from a seed, whose next chapter follows from a calculation: what plans are worth to a tiny model.

Somebody has coins, earns and spends some, and wants to buy a thing; the next chapter tells how many coins are left and
whether they suffice. All of that is in the sections, but it takes a calculation step by step to foresee it. Part of the
demonstrations guess instead, so that reinforcement has something to find. Nothing is downloaded.
"""

from __future__ import annotations

import random
import re
from collections.abc import Container
from dataclasses import dataclass

from troupe.config.algorithm import CONTEXT
from troupe.config.made_data import ShortStoriesConfig
from troupe.data.dataset import DataSet, conversation
from troupe.data.next_chapter import CONTEXT_TEMPLATE, sections_text
from troupe.records import Branch, Sample

NAMES = ("Mira", "Tom", "Ana", "Li", "Sam", "Omar", "Raj", "Nia", "Ben", "Zoe")
TRADES = ("weaver", "baker", "smith", "sailor", "piper", "miller")
GAINS = ("sells a lamp for {}", "finds {}", "earns {}", "wins {} at dice")
LOSSES = ("buys bread for {}", "loses {}", "gives a beggar {}", "pays the ferry {}")
THINGS = ("boat", "horse", "drum", "coat", "bell", "map")
HAPPY = ("sings", "smiles", "dances")
SAD = ("sighs", "frowns", "weeps")
SECTIONS = ("character_sheets", "last_n_chapters", "next_chapter_synopsis")
PLAN_REQUEST = "Plan the next chapter."
CHAPTER_REQUEST = "Write the next chapter."
LARGEST = 9
"""Largest number of coins that somebody begins with, gains or loses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Example: Mira has 7 coins, +5, -4, and wants a boat for 9: 8 coins are left, which is not enough."""

    name: str
    trade: str
    start: int
    changes: tuple[int, int]
    deeds: tuple[str, str]
    thing: str
    price: int
    ending: str

    @property
    def left(self) -> int:
        return self.start + sum(self.changes)

    @property
    def plan(self) -> str:
        return _plan(self.left, self.left >= self.price)

    @property
    def working(self) -> str:
        """The calculation line by line, such as "7+5=12", "12-4=8", then the comparison, "8<9"."""
        lines, coins = [], self.start
        for change in self.changes:
            lines.append(f"{coins}{change:+d}={coins + change}")
            coins += change
        return "\n".join([*lines, f"{coins}{'<' if coins < self.price else '>='}{self.price}"])

    @property
    def sections(self) -> dict[str, object]:
        """Fields of a row of `next_chapter`."""
        return {
            "character_sheets": {self.name: f"A {self.trade} with {_coins(self.start)}."},
            "last_n_chapters": [" ".join(f"{self.name} {deed}." for deed in self.deeds)],
            "next_chapter_synopsis": f"{self.name} wants a {self.thing} that costs {_coins(self.price)}.",
        }

    @property
    def chapter(self) -> str:
        verdict = f"That is enough for the {self.thing}." if self.left >= self.price else "That is not enough."
        return f"{self.name} counts {_coins(self.left)}. {verdict} {self.name} {self.ending}."


def load_short_stories(config: ShortStoriesConfig) -> DataSet:
    """Make stories; held-out ones are distinct and occur nowhere in training, training ones may repeat one another."""
    heldout: dict[str, Sample] = {}
    for index in range(config.num_heldout):
        text, sample = _new_sample(f"short_stories/heldout/{index}", config, heldout.keys())
        heldout[text] = sample
    train = [
        _new_sample(f"short_stories/train/{index}", config, heldout.keys(), learnt_from=True)[1]
        for index in range(config.num_train)
    ]
    return DataSet(name="short_stories", train=train, heldout=list(heldout.values()))


def _new_sample(
    sample_id: str, config: ShortStoriesConfig, excluded: Container[str], *, learnt_from: bool = False
) -> tuple[str, Sample]:
    """Return the text of a story's sections, which is none of the excluded ones, and its sample.

    The story depends on the id alone, so both tasks tell the same ones. What is learnt from has a demonstration and, in
    the task `chapter`, in part a plan in its prompt.
    """
    rng = random.Random(f"{sample_id}/{config.seed}")
    while (text := sections_text(SECTIONS, sample_id, (story := _story(rng)).sections)) in excluded:
        pass
    scorer_prompt = f"{text}\n\n### Instructions\n{CHAPTER_REQUEST}"
    guess = _story(rng).plan
    demonstration: str | None
    if config.task == "plan":
        prompt = f"{text}\n\n### Instructions\n{PLAN_REQUEST}"
        guesses = rng.random() < config.guessed_fraction
        worked_out = f"{story.working}\n{config.marker} {story.plan}"
        demonstration = (f"{config.marker} {guess}" if guesses else worked_out) if learnt_from else None
    else:
        shown = learnt_from and rng.random() < config.plan_share
        plan = guess if rng.random() < config.wrong_plan_fraction else story.plan
        prompt = scorer_prompt + (CONTEXT_TEMPLATE.replace(CONTEXT, plan) if shown else "")
        demonstration = story.chapter
    return text, Sample(
        sample_id=sample_id,
        prompt=conversation(prompt),
        gold=story.chapter,
        fields={
            "scorer_prompt": conversation(scorer_prompt),
            "context_template": CONTEXT_TEMPLATE,
            **({"demonstration": demonstration} if demonstration else {}),
        },
    )


def _story(rng: random.Random) -> Story:
    start = coins = rng.randint(1, LARGEST)
    changes: list[int] = []
    deeds: list[str] = []
    for _ in range(2):
        gains = coins == 0 or rng.random() < 0.5
        amount = rng.randint(1, LARGEST if gains else min(LARGEST, coins))
        changes.append(amount if gains else -amount)
        deeds.append(rng.choice(GAINS if gains else LOSSES).format(_coins(amount)))
        coins += changes[-1]
    price = rng.randint(1, 2 * LARGEST)
    return Story(
        name=rng.choice(NAMES),
        trade=rng.choice(TRADES),
        start=start,
        changes=(changes[0], changes[1]),
        deeds=(deeds[0], deeds[1]),
        thing=rng.choice(THINGS),
        price=price,
        ending=rng.choice(HAPPY if coins >= price else SAD),
    )


def right_coins(sample: Sample, branch: Branch) -> float:
    """Return 1 if the last number of coins that a plan or a chapter names is that of the sample's chapter, else 0."""
    told, gold = (re.findall(r"(\d+) coin", text) for text in (branch.text, str(sample.gold)))
    return float(told[-1:] == gold[-1:])


def _plan(left: int, suffices: bool) -> str:
    return f"{_coins(left)}, {'enough' if suffices else 'not enough'}"


def _coins(number: int) -> str:
    return "1 coin" if number == 1 else f"{number} coins"
