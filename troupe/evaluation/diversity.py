"""How varied a model's texts are, and how much of them comes from the prompt: words, n-grams, ROUGE-L.

Words are those of Google's `rouge-score` (lower case, letters and digits), so the numbers agree with the metric
`rouge`; the longest common subsequence is our own, because that library's takes minutes on whole chapters.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from troupe.evaluation.estimates import estimate_columns, means_by_sample
from troupe.statistics import Estimate

SECTION = re.compile(r"(?m)^#{1,6}[ \t]+(.+?)[ \t#]*$")
"""A heading in Markdown; what follows it, up to the next, is a section of the prompt."""
DISTINCT = (1, 2, 3)
COLUMNS = {
    "words": "words",
    "unique_word_percent": "unique words %",
    "unseen_trigram_percent": "unseen trigrams %",
    "rouge_l_f1": "ROUGE-L to gold",
    "rouge_l_precision": "its precision",
    **{f"distinct_{n}": f"distinct-{n}" for n in DISTINCT},
}
"""Name in JSON -> heading in tables; ROUGE-L to a section of the prompt is `rouge_l_precision/<heading>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """An answer, the prompt it answers, and the reference answer if there is one."""

    sample_id: str
    answer: str
    prompt: str
    gold: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """Of one model's answers."""

    means: Mapping[str, Estimate]
    """Per answer, with an interval over samples; trigrams of two words, for example, are left out."""
    distinct: Mapping[str, float] = field(default_factory=dict)
    """distinct_n (1510.03055): different n-grams of all answers together / their number. It falls as texts get more, so
    compare equal numbers of answers."""

    def as_dict(self) -> dict[str, object]:
        means = {name: {"mean": e.mean, "low": e.low, "high": e.high} for name, e in self.means.items()}
        return {**means, **self.distinct}


def diversity(texts: Sequence[Text], *, seed: int = 0) -> Diversity:
    """Return the statistics of at least one answer; several to one sample count as their mean."""
    means = means_by_sample([text.sample_id for text in texts], [statistics_of(text) for text in texts])
    words = [words_of(text.answer) for text in texts]
    return Diversity(
        means=estimate_columns(means, seed=seed),
        distinct={f"distinct_{n}": share for n in DISTINCT if (share := distinct_share(words, n)) is not None},
    )


def statistics_of(text: Text) -> dict[str, float]:
    """Measure one answer: `words`, and what an answer of so many words can have.

    >>> text = Text(sample_id="s", answer="a cat sat on a mat", prompt="A cat sat.", gold="a cat on a mat")
    >>> found = statistics_of(text)
    >>> found["words"], found["unseen_trigram_percent"], round(found["unique_word_percent"], 1)  # 3 of 4; 5 of 6
    (6.0, 75.0, 83.3)
    """
    answer = words_of(text.answer)
    found = {"words": float(len(text.answer.split()))}
    if not answer:
        return found
    found["unique_word_percent"] = 100 * len(set(answer)) / len(answer)
    own, given = ngrams(answer, 3), set(ngrams(words_of(text.prompt), 3))
    if own:
        found["unseen_trigram_percent"] = 100 * sum(one not in given for one in own) / len(own)
    if text.gold is not None and (gold := words_of(text.gold)):
        found["rouge_l_precision"], found["rouge_l_f1"] = rouge_l(answer, gold)
    for heading, section in sections(text.prompt).items():
        if part := words_of(section):
            found[f"rouge_l_precision/{heading}"] = rouge_l(answer, part)[0]
    return found


def sections(prompt: str) -> dict[str, str]:
    """Return heading -> text under it, of a prompt with Markdown headings; several of one heading are one section.

    >>> sections("Read.\\n### Plot ###\\nA dog.\\n### Style\\nShort.")
    {'Plot': '\\nA dog.\\n', 'Style': '\\nShort.'}
    """
    _, *pieces = SECTION.split(prompt)
    found: dict[str, str] = {}
    for heading, text in zip(pieces[::2], pieces[1::2], strict=True):
        found[heading] = found.get(heading, "") + text
    return found


def words_of(text: str) -> list[str]:
    """Return lower-case words of letters and digits, as `rouge-score` takes them without stemming."""
    return re.findall(r"[a-z0-9]+", text.lower())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct_share(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Return different n-grams / all n-grams of the texts; None where no text has n words."""
    found = [one for words in texts for one in ngrams(words, n)]
    return len(set(found)) / len(found) if found else None


def rouge_l(words: Sequence[str], others: Sequence[str]) -> tuple[float, float]:
    """Return (precision, F1) of `words` against `others`, neither empty (Lin 2004)."""
    common = common_subsequence_length(words, others)
    precision, recall = common / len(words), common / len(others)
    return precision, 2 * precision * recall / (precision + recall) if common else 0.0


def common_subsequence_length(words: Sequence[str], others: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a row of the table at a time as bits (Hyyrö 2004).

    A bit of `row` is 0 where the subsequence grows by one within `words`.

    >>> common_subsequence_length("the cat sat on the mat".split(), "the cat on mat".split())
    4
    """
    places: dict[str, int] = defaultdict(int)
    for index, word in enumerate(words):
        places[word] |= 1 << index
    full = (1 << len(words)) - 1
    row = full
    for word in others:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(words) - row.bit_count()
