"""Reddit posts, their authors' summaries, and pairs that people compared (Stiennon et al. 2020, 2009.01325).

Prompts are raw text and end with `TL;DR:`; summaries begin with the space that follows it. The comparisons of
the hub keep `TL;DR:` in their answers: it is moved, so that both data sets show a model the same text.
"""

from __future__ import annotations

from functools import partial

from troupe.config.published_data import TldrComparisonsConfig, TldrConfig
from troupe.data.dataset import DataSet, Dropped, shorten
from troupe.data.lines import Row, text_of
from troupe.data.published import load_published
from troupe.records import Sample

SUFFIX = "TL;DR:"


def load_tldr(config: TldrConfig) -> DataSet:
    return load_published(config, partial(_post, config), heldout=config.heldout_split)


def load_tldr_comparisons(config: TldrComparisonsConfig) -> DataSet:
    return load_published(config, partial(_comparison, config), heldout=config.heldout_split)


def _post(config: TldrConfig, sample_id: str, where: str, row: Row) -> Sample:
    label = summary(text_of(row, "label", where))
    return Sample(
        sample_id=sample_id,
        prompt=post(text_of(row, "prompt", where), config.max_prompt_chars),
        gold=label,
        fields={"demonstration": label},
    )


def _comparison(config: TldrComparisonsConfig, sample_id: str, where: str, row: Row) -> Sample | Dropped:
    answers = [summary(text_of(row, name, where)) for name in ("chosen", "rejected")]
    if min(len(answer.split()) for answer in answers) < config.min_answer_words:
        return Dropped("short_answers")
    return Sample(
        sample_id=sample_id,
        prompt=post(text_of(row, "prompt", where), config.max_prompt_chars),
        fields={"answers": answers},
    )


def post(text: str, max_chars: int) -> str:
    """Return the prompt of a post: at most `max_chars` characters, its end cut off where it is longer, then `TL;DR:`.

    >>> post("SUBREDDIT: r/cats\\nPOST: He ate it. All of it.\\nTL;DR:", 46)
    'SUBREDDIT: r/cats\\nPOST: He ate it. All\\nTL;DR:'
    """
    body = text.rstrip().removesuffix(SUFFIX).rstrip()
    return f"{shorten(body, max_chars - len(SUFFIX) - 1)}\n{SUFFIX}"


def summary(text: str) -> str:
    """Return the summary as it follows `TL;DR:` in a prompt, with the space between them.

    >>> summary("TL;DR: He ate it.")
    ' He ate it.'
    """
    return " " + text.strip().removeprefix(SUFFIX).strip()
