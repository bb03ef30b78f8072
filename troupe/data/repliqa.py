"""RepLiQA (Monteiro et al. 2024, 2406.11811): documents about invented people and places, with five questions each.

The hub has a row per question. Here the rows of a document are one sample: the document is the prompt, what is asked
about it is in the fields, for `judge_qa`. About a fifth of the questions have no answer in their document.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from troupe.config.published_data import RepliqaConfig
from troupe.data.dataset import DataSet, conversation, shorten
from troupe.data.lines import Row, read_rows, text_of
from troupe.data.published import Located, one_split
from troupe.data.reference_answers import read_answers
from troupe.errors import DataError
from troupe.records import Sample

log = logging.getLogger(__name__)

SYSTEM = "You write summaries for readers who have no time for the document: dense, faithful, in plain sentences."
REQUEST = """\
Summarise the document below. Keep every fact that a reader might be asked about afterwards: names, numbers, dates, \
places, causes and results. Leave out what says nothing.{limit}

{document}"""


@dataclass(slots=True)
class Document:
    """A document and its questions, gathered from its rows."""

    document_id: str
    text: str
    topic: str
    where: str
    questions: list[dict[str, Any]] = field(default_factory=list)


def load_repliqa(config: RepliqaConfig) -> DataSet:
    """Load documents in seeded order; the first `num_heldout` are held out, whatever `num_train` is."""
    documents = list(_grouped(one_split(config.path, config.split), re.compile(config.unanswerable)).values())
    random.Random(f"repliqa/{config.seed}").shuffle(documents)
    dropped: Counter[str] = Counter()
    fitting = [fits for document in documents if (fits := _fitting(document, config, dropped)) is not None]
    if len(fitting) <= config.num_heldout:
        raise DataError(
            f"{config.path} has {len(fitting)} documents, too few to hold out {config.num_heldout} and train on the "
            f"others; "
            "lower data.num_heldout or give more documents"
        )
    if dropped["cut_documents"]:
        log.info("repliqa: cut %d documents at %d characters", dropped.pop("cut_documents"), config.max_document_chars)
    _report_unanswerable(fitting)
    samples = [_sample(document, config) for document in fitting]
    heldout, train = samples[: config.num_heldout], samples[config.num_heldout :]
    if config.demonstrations is not None:
        train, heldout = (_with_demonstrations(side, Path(config.demonstrations), dropped) for side in (train, heldout))
    return DataSet(
        name="repliqa",
        train=train[: config.num_train],
        heldout=heldout,
        dropped=dropped,
        from_one_file=True,
        own_ids=True,
    )


def _grouped(rows: Located, unanswerable: re.Pattern[str]) -> dict[str, Document]:
    """Return document id -> document, in the order of their first rows; ids sort the questions of a document."""
    documents: dict[str, Document] = {}
    for where, row in rows:
        document_id, text = text_of(row, "document_id", where), text_of(row, "document_extracted", where)
        document = documents.setdefault(
            document_id, Document(document_id, text, str(row.get("document_topic", "")), where)
        )
        if document.text != text:
            raise DataError(
                f"{where}: document {document_id!r} has another text here than at {document.where}; "
                "give each text an id of its own"
            )
        document.questions.append(_question(row, where, unanswerable))
    return documents


def _question(row: Row, where: str, unanswerable: re.Pattern[str]) -> dict[str, Any]:
    answer = text_of(row, "answer", where)
    return {
        "question_id": text_of(row, "question_id", where),
        "question": text_of(row, "question", where),
        "answer": answer,
        "answerable": unanswerable.search(answer) is None,
    }


def _fitting(document: Document, config: RepliqaConfig, dropped: Counter[str]) -> Document | None:
    """Return the document within `max_document_chars`; None where it is longer and longer ones are dropped."""
    if config.max_document_chars is None or len(document.text) <= config.max_document_chars:
        return document
    if config.long_documents == "drop":
        dropped["long_documents"] += 1
        return None
    dropped["cut_documents"] += 1
    return dataclasses.replace(document, text=shorten(document.text, config.max_document_chars))


def _report_unanswerable(documents: Sequence[Document]) -> None:
    """Log the share that an empty summary would earn; none at all is a pattern that does not fit."""
    questions = [question for document in documents for question in document.questions]
    share = sum(not question["answerable"] for question in questions) / len(questions)
    log.info(
        "repliqa: %d documents, %d questions, %.0f %% of them without an answer",
        len(documents),
        len(questions),
        100 * share,
    )
    if share == 0:
        log.warning("repliqa: no gold answer says that the document has none; check data.unanswerable")


def _sample(document: Document, config: RepliqaConfig) -> Sample:
    """Make the prompt of the document and the limit alone, so that no answer can get into it another way."""
    limit = "" if config.limit is None else f" The summary may have {config.limit} {config.limit_unit} at most."
    return Sample(
        sample_id=f"repliqa/{document.document_id}",
        prompt=conversation(REQUEST.format(limit=limit, document=document.text), system=SYSTEM),
        fields={
            "document": document.text,
            "questions": sorted(document.questions, key=lambda question: str(question["question_id"])),
            "topic": document.topic,
        },
    )


def _with_demonstrations(samples: Sequence[Sample], path: Path, dropped: Counter[str]) -> list[Sample]:
    """Return the samples that the file has a summary of, which becomes their demonstration; the others are counted."""
    known = {str(row.get("sample_id")) for _, _, row in read_rows(path)}
    named = [sample for sample in samples if sample.sample_id in known]
    answers = read_answers(path, named)
    dropped["no_demonstration"] += len(samples) - len(named)
    return [
        dataclasses.replace(sample, fields={**sample.fields, "demonstration": answers[sample.sample_id].text})
        for sample in named
    ]
