"""Grade-school mathematics (Cobbe et al. 2021, 2110.14168), from the hub or from files of the same fields.

A row has `question` and `answer`; the answer ends with `#### n`, which is the gold number, and carries
calculator notes such as `<<3+5=8>>`, which are no part of the demonstration.
"""

from __future__ import annotations

import re

from troupe.config.published_data import GSM8KConfig
from troupe.data.dataset import DataSet, conversation
from troupe.data.lines import Row, text_of
from troupe.data.published import load_published
from troupe.errors import DataError
from troupe.records import Sample

CALCULATOR_NOTE = re.compile(r"<<[^>]*>>")
GOLD = re.compile(r"####[ \t]*(-?[\d,]*\.?\d+)\s*$")


def load_gsm8k(config: GSM8KConfig) -> DataSet:
    return load_published(config, _sample, subset="main")


def _sample(sample_id: str, where: str, row: Row) -> Sample:
    question, answer = text_of(row, "question", where), text_of(row, "answer", where)
    gold = GOLD.search(answer)
    if gold is None:
        raise DataError(f"{where}: field 'answer' must end with '#### ' and a number, it ends with {answer[-40:]!r}")
    return Sample(
        sample_id=sample_id,
        prompt=conversation(question),
        gold=gold[1].replace(",", ""),
        fields={"demonstration": CALCULATOR_NOTE.sub("", answer)},
    )
