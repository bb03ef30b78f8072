"""Grade-school mathematics (Cobbe et al. 2021, 2110.14168), from the hub or from files of the same fields.

A row has `question` and `answer`; the answer ends with `#### n`, which is the gold number, and carries
calculator notes such as `<<3+5=8>>`, which are no part of the demonstration.
"""

from __future__ import annotations

import re
from pathlib import Path

from core.data_recipes import GSM8KConfig
from core.errors import DataError
from core.records import Sample
from data.dataset import DataSet, conversation
from data.lines import Row, read_rows, text_of

CALCULATOR_NOTE = re.compile(r"<<[^>]*>>")
GOLD = re.compile(r"####[ \t]*(-?[\d,]*\.?\d+)\s*$")

Located = list[tuple[str, Row]]
"""Rows, each with the place that an error names, such as `train.jsonl line 3`."""


def load_gsm8k(config: GSM8KConfig) -> DataSet:
    train, heldout = _rows(config)
    return DataSet(
        name="gsm8k",
        train=[_sample(f"gsm8k/train/{i}", where, row, config) for i, (where, row) in enumerate(train)],
        heldout=[
            _sample(f"gsm8k/test/{i}", where, row, config)
            for i, (where, row) in enumerate(heldout[: config.num_heldout])
        ],
    )


def _rows(config: GSM8KConfig) -> tuple[Located, Located]:
    path = Path(config.path)
    if path.is_dir():
        return _file(path / "train.jsonl"), _file(path / "test.jsonl")
    if path.is_file() or path.suffix in (".jsonl", ".json") or path.is_absolute() or config.path.startswith("."):
        return _split(_file(path), config)
    return _hub(config.path)


def _file(path: Path) -> Located:
    return [(f"{path} line {number}", row) for number, row in read_rows(path)]


def _split(rows: Located, config: GSM8KConfig) -> tuple[Located, Located]:
    """One file for both: its last `num_heldout` questions are held out, a tenth when that is unset."""
    num_heldout = config.num_heldout or max(1, len(rows) // 10)
    if num_heldout >= len(rows):
        raise DataError(
            f"{config.path} has {len(rows)} questions, too few to hold out {num_heldout} and train on the others; "
            "lower data.num_heldout or give more questions"
        )
    return rows[:-num_heldout], rows[-num_heldout:]


def _hub(name: str) -> tuple[Located, Located]:
    import datasets  # seconds of import that local files do not need

    try:
        loaded = datasets.load_dataset(name, "main")
        train, test = list(loaded["train"]), list(loaded["test"])
    except Exception as error:  # the hub's failures have no common base: network, missing repository, missing split
        raise DataError(
            f"data set {name!r} cannot be loaded from the Hugging Face hub ({type(error).__name__}: {error}); check the "
            "name and the network, or put train.jsonl and test.jsonl into a directory and set data.path to it"
        ) from None
    return [(f"{name} train row {i}", row) for i, row in enumerate(train)], [
        (f"{name} test row {i}", row) for i, row in enumerate(test)
    ]


def _sample(sample_id: str, where: str, row: Row, config: GSM8KConfig) -> Sample:
    question, answer = text_of(row, "question", where), text_of(row, "answer", where)
    gold = GOLD.search(answer)
    if gold is None:
        raise DataError(f"{where}: field 'answer' must end with '#### ' and a number, it ends with {answer[-40:]!r}")
    return Sample(
        sample_id=sample_id,
        prompt=conversation(question, system=config.system_prompt),
        gold=gold[1].replace(",", ""),
        fields={"demonstration": CALCULATOR_NOTE.sub("", answer)},
    )
