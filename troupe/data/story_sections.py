"""Sections of stories that another model writes, as `next_chapter` shows them: summaries, synopses, character sheets.

Of each chapter a summary and a synopsis, of each story its plot, of each row the sheets of those who matter most up to
there. Nothing in a row comes from its next chapter but the synopsis, and the plot, which is that of the whole story.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from troupe.config.tools import StorySectionsConfig
from troupe.data.lines import Row, field_of, read_rows, text_of
from troupe.errors import DataError

SUMMARY = """\
Below is a chapter of a story. Summarise it in one paragraph: who does what and why, what changes, where it ends. Name \
people and places. Give the paragraph alone.

--- {header} ---
{text}"""
SYNOPSIS = """\
Below is the summary of a chapter. Say in one or two sentences what the chapter is about, as a note to somebody who is \
still to write it: the main event and who is in it, no details. Give the sentences alone.

{summary}"""
PLOT = """\
Below are the summaries of all chapters of a story. Give the plot of the whole story in one paragraph. Give the \
paragraph alone.

{summaries}"""
SHEETS = """\
Below are the summaries of a story's chapters so far. Write a sheet for each of the {count} most important characters \
as they are at this point: who they are, what they want, how they speak and act, how they stand to one another. Begin \
each sheet with a line that is `### ` and the character's name, and give the sheets alone.

{summaries}"""

Read = Callable[[str], Any]
"""From a reply to what it says; None where it cannot be read."""
Ask = Callable[[str, Read], Awaitable[Any]]
"""From a prompt to what the reply says; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A line of the file."""

    where: str
    story_id: str
    headers: Sequence[str]
    chapters: Sequence[str]
    genre: str | None


def read_stories(path: Path) -> list[Story]:
    """Read stories; DataError for a line that is none, or has an earlier one's id.

    Example: `{"story_id": "lighthouse", "chapters": ["Ines ...", {"header": "The Crossing", "text": "Marrow ..."}]}`.
    """
    stories: dict[str, Story] = {}
    for _, where, row in read_rows(path):
        story = _story(where, row)
        if story.story_id in stories:
            raise DataError(f"{where}: story_id {story.story_id!r} stands twice; a story is one line with its chapters")
        stories[story.story_id] = story
    return list(stories.values())


def _story(where: str, row: Row) -> Story:
    given = field_of(row, "chapters", where)
    chapters = given if isinstance(given, list) else []
    parts = [one if isinstance(one, Mapping) else {"text": one} for one in chapters]
    texts = [one.get("text") for one in parts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{where}: chapters must be a list of texts, or of {{header, text}}, none of them empty; got {given!r:.60}"
        )
    headers = [str(one.get("header") or f"Chapter {number}") for number, one in enumerate(parts, start=1)]
    genre = row.get("genre")
    story_id = text_of(row, "story_id", where)
    return Story(where=where, story_id=story_id, headers=headers, chapters=[str(text) for text in texts], genre=genre)


async def story_rows(story: Story, config: StorySectionsConfig, ask: Ask) -> list[Row]:
    """Return a row for each chapter of a story that is to be foreseen; DataError where a text could not be had."""
    rows = range(config.first_chapter, len(story.chapters) - config.skip_last)
    if not rows:
        return []
    writer = _Writer(story, ask)
    summaries = await _all(map(writer.summary, range(len(story.chapters))))
    so_far = [f"{header}: {summary}" for header, summary in zip(story.headers, summaries, strict=True)]
    plot, synopses, sheets = await _all(
        [
            writer.had("the plot", PLOT.format(summaries="\n\n".join(so_far))),
            _all(writer.synopsis(index, summaries[index]) for index in rows),
            _all(writer.sheets(index, so_far[:index], config.characters) for index in rows),
        ]
    )
    made = []
    for index, synopsis, own_sheets in zip(rows, synopses, sheets, strict=True):
        last = list(story.chapters[max(0, index - config.last_chapters) : index])
        made.append(
            {
                "story_id": story.story_id,
                **({"genre": story.genre} if story.genre else {}),
                "chapter_index": index,
                "story_text": "\n\n".join(last),
                "last_n_chapters": last,
                "prior_plot_summary": "\n\n".join(so_far[:index]),
                "high_level_plot_summary": plot,
                "character_sheets": own_sheets,
                "next_chapter_synopsis": synopsis,
                "next_chapter_header": story.headers[index],
                "next_chapter": story.chapters[index],
            }
        )
    return made


@dataclass(frozen=True, slots=True)
class _Writer:
    """The questions about one story."""

    story: Story
    ask: Ask

    async def had(self, what: str, prompt: str, read: Read | None = None) -> Any:
        found = await self.ask(prompt, read or _stripped)
        if found is None:
            raise DataError(f"{self.story.where}: {what} could not be had")
        return found

    async def summary(self, index: int) -> str:
        header, text = self.story.headers[index], self.story.chapters[index]
        return str(await self.had(f"a summary of {header!r}", SUMMARY.format(header=header, text=text)))

    async def synopsis(self, index: int, summary: str) -> str:
        return str(await self.had(f"a synopsis of {self.story.headers[index]!r}", SYNOPSIS.format(summary=summary)))

    async def sheets(self, index: int, so_far: Sequence[str], count: int) -> dict[str, str]:
        what = f"{count} character sheets before {self.story.headers[index]!r}"
        prompt = SHEETS.format(count=count, summaries="\n\n".join(so_far))
        return dict(await self.had(what, prompt, lambda reply: sheets_of(reply, count)))


async def _all(awaited: Iterable[Awaitable[Any]]) -> list[Any]:
    """Return all results; what one of them raises is raised when all others have ended."""
    found = await asyncio.gather(*awaited, return_exceptions=True)
    error = next((one for one in found if isinstance(one, BaseException)), None)
    if error is not None:
        raise error
    return list(found)


def _stripped(reply: str) -> str | None:
    return reply.strip() or None


def sheets_of(reply: str, count: int) -> dict[str, str] | None:
    """Return name -> sheet; None unless there are as many as were wanted.

    >>> sheets_of("### Ines\\nKeeper of the light.\\n### **Marrow**\\nThe ferryman.", 2)
    {'Ines': 'Keeper of the light.', 'Marrow': 'The ferryman.'}
    """
    _, *parts = re.split(r"^#+ +(.+?)\s*$", reply, flags=re.MULTILINE)
    named = zip(parts[::2], parts[1::2], strict=True)
    sheets = {name.strip("*_ "): text.strip() for name, text in named if text.strip()}
    return dict(list(sheets.items())[:count]) if len(sheets) >= count else None
