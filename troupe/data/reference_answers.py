"""Answers that were written elsewhere: by an earlier evaluation, by another program, or by a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from troupe.data.lines import field_of, read_rows
from troupe.errors import DataError
from troupe.records import Branch, Sample

TEXT_FIELDS = ("prediction", "answer", "text")


def read_answers(path: Path, samples: Sequence[Sample]) -> dict[str, Branch]:
    """Return the answers of a JSONL file to these samples, by `sample_id`; the text is in `prediction`, `answer` or
    `text`.

    A branch has no tokens, since their tokenizer is not known; one with `finish_reason: length` was cut off.
    Raises DataError for a line without an id or a text, two answers to one sample, and samples without an answer.
    """
    found: dict[str, Branch] = {}
    for _, where, row in read_rows(path):
        sample_id = str(field_of(row, "sample_id", where))
        if sample_id in found:
            raise DataError(f"{where}: a second answer to {sample_id}; keep one for each sample")
        field = next((name for name in TEXT_FIELDS if isinstance(row.get(name), str)), None)
        if field is None:
            raise DataError(f"{where}: no answer; its text must be in one of the fields {', '.join(TEXT_FIELDS)}")
        found[sample_id] = Branch(token_ids=(), text=row[field], finish_reason=row.get("finish_reason", "stop"))
    missing = [sample.sample_id for sample in samples if sample.sample_id not in found]
    if missing:
        raise DataError(
            f"{path} has no answer to {len(missing)} of the {len(samples)} samples, {missing[0]} the first; compare "
            f"on the samples "
            "that it was made for (data, num_samples, max_prompt_tokens)"
        )
    return {sample.sample_id: found[sample.sample_id] for sample in samples}
