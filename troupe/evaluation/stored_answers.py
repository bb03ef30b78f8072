"""Answers on disk between the two phases of an evaluation, so that a crash while scoring loses no generation.

Beside each file is what its answers depend on, written last; answers of other settings are as good as none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from troupe.files import JsonLines, read_json, read_lines, to_json, write_atomically
from troupe.records import Branch, Score

log = logging.getLogger(__name__)

Answers = Mapping[str, Branch]
"""A model's answers: sample_id -> branch."""
AnswersByRepeat = Mapping[tuple[str, int], Answers]
"""(name, repeat) -> answers; an answer that could not be had is not among them."""


class AnswerStore:
    """`<name>.jsonl` with a model's answers and `<name>.settings.json` with what they depend on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, name: str, answers: Answers, settings: Mapping[str, Any]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._settings(name).unlink(missing_ok=True)  # never beside answers of other settings
        lines = [to_json(_row(sample_id, branch)) + "\n" for sample_id, branch in answers.items()]
        write_atomically(self._answers(name), "".join(lines))
        write_atomically(self._settings(name), to_json(settings, indent=2) + "\n")

    def read(self, name: str, sample_ids: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Branch] | None:
        """Return the stored answers to exactly these samples.

        None where there are none, or they were made otherwise.
        """
        stored = read_json(self._settings(name))
        if stored is None:
            return None
        changed = [key for key in settings if stored.get(key) != settings[key]]
        if changed:
            log.info("%s answers again: %s changed", name, ", ".join(changed))
            return None
        rows = {row["sample_id"]: row for row in read_lines(self._answers(name))}
        if not set(sample_ids) <= set(rows):
            return None
        log.info("%s: %d answers of an earlier call are used", name, len(sample_ids))
        return {sample_id: _branch(rows[sample_id]) for sample_id in sample_ids}

    def _answers(self, name: str) -> Path:
        return self._directory / f"{name}.jsonl"

    def _settings(self, name: str) -> Path:
        return self._directory / f"{name}.settings.json"


class AnswerLog:
    """`<name>.jsonl` with what an endpoint was asked, a line as soon as it is answered or given up.

    A line holds `question` (a hash of all that the answer depends on), `sample_id`, `repeat`, `text` (null: missing),
    `finish_reason`, tokens, cost and calls. Lines of other settings stay, for they were paid for, and are not looked
    at.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / f"{name}.jsonl"
        self._lines = JsonLines(self._path)

    def append(self, row: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lines.append(row)

    def known(self) -> set[str]:
        """Return the questions that have an answer; a game whose environment raised is played again."""
        rows = read_lines(self._path)
        return {row["question"] for row in rows if row.get("text") is not None and not row.get("failed")}

    def rows(self, questions: Sequence[str]) -> list[dict[str, Any]]:
        """Return every line of these questions, failures too, in the order they were written."""
        wanted = set(questions)
        return [row for row in read_lines(self._path) if row.get("question") in wanted]


def text_branch(row: Mapping[str, Any]) -> Branch:
    """Return the answer of a line, without tokens, which are not known."""
    finish_reason = row.get("finish_reason") or "stop"
    return Branch(token_ids=(), text=row["text"], finish_reason=finish_reason, outcome=_outcome(row))


def outcome_row(outcome: Score) -> dict[str, Any]:
    """Return what a line holds of a game's outcome."""
    return {"value": outcome.value, "parts": dict(outcome.parts)}


def _outcome(row: Mapping[str, Any]) -> Score | None:
    return Score(**row["outcome"]) if "outcome" in row else None


def _row(sample_id: str, branch: Branch) -> dict[str, Any]:
    """Return the line of an answer; a game has the mask of the model's tokens and its outcome, too."""
    row: dict[str, Any] = {"sample_id": sample_id, "text": branch.text, "finish_reason": branch.finish_reason}
    row["token_ids"] = list(branch.token_ids)
    if branch.loss_mask is not None:
        row["loss_mask"] = list(branch.loss_mask)
    if branch.outcome is not None:
        row["outcome"] = outcome_row(branch.outcome)
    return row


def _branch(row: Mapping[str, Any]) -> Branch:
    known = {name: row[name] for name in ("text", "finish_reason", "token_ids", "loss_mask") if name in row}
    return Branch(**known, outcome=_outcome(row))
