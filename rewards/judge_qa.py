"""How many questions about a document its summary answers: a judge answers from the summary alone and is compared with
the gold answers.

The sample carries the document and its questions; `troupe/data/repliqa.py` and `troupe/data/documents.py` make such
samples. The judges are in `troupe.rewards.qa_judges`: a model behind an endpoint, or rules.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from troupe.records import Branch, Sample, Score
from troupe.rewards.chat_endpoint import Judgement, spent
from troupe.rewards.form import Unit, size_of
from troupe.rewards.judges_thread import on_judges_thread
from troupe.rewards.qa_judges import EndpointJudge, QAJudge, Question, RulesJudge, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The questions that a sample asks of a summary."""

    document: str
    questions: Sequence[Question]
    unanswerable: float
    """Share of all its questions that the document does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The verdicts on one text, one per question."""

    verdicts: Sequence[Verdict]

    @property
    def correct(self) -> int | None:
        """Questions answered; None where a verdict is missing."""
        values = [verdict.value for verdict in self.verdicts if verdict.value is not None]
        return sum(values) if len(values) == len(self.verdicts) else None

    @property
    def judgements(self) -> list[Judgement[Any]]:
        return [judgement for verdict in self.verdicts for judgement in verdict.judgements]


class JudgeQA:
    """Questions of the sample that the answer, a summary, lets a judge answer as the gold answers do.

    With `extract` the answer names lines of the document by their numbers, and the summary is these lines. A summary
    beyond `max_length`, or with a letter of an `unwanted_scripts`, is gated: 0, and nobody is asked about it. A verdict
    that could not be had makes the score missing. The same questions are asked of the whole document, once for each
    document in the life of the process. Arguments beyond these are those of an endpoint (EndpointConfig).
    """

    def __init__(
        self,
        *,
        judge: Literal["endpoint", "rules"] = "endpoint",
        score: Literal["count", "fraction"] = "count",
        max_length: Annotated[int, Field(ge=1)] | None = 3000,
        length_unit: Unit = "chars",
        unwanted_scripts: list[str] | tuple[str, ...] = ("Han",),
        skip_unanswerable: bool = False,
        compare_full: bool = True,
        use_full: bool = False,
        show_document: bool = True,
        min_overlap: Annotated[float, Field(gt=0, le=1)] = 0.6,
        extract: bool = False,
        **endpoint: Any,
    ) -> None:
        if extract and length_unit == "tokens":
            raise ValueError(
                "with extract the summary is not what was sampled and has no tokens; set length_unit: words or chars"
            )
        if judge == "rules" and endpoint:
            raise ValueError(
                f"judge: rules asks no endpoint; leave out {', '.join(sorted(endpoint))}, or set judge: endpoint"
            )
        self._judge: QAJudge = (
            RulesJudge(min_overlap=min_overlap)
            if judge == "rules"
            else EndpointJudge(show_document=show_document, **endpoint)
        )
        self._asks = judge == "endpoint"
        self._as_fraction = score == "fraction"
        self._max_length, self._unit = max_length, length_unit
        self._unwanted = letters_of(unwanted_scripts)
        self._skip_unanswerable = skip_unanswerable
        self._compare_full, self._use_full = compare_full or use_full, use_full
        self._extract = extract
        self._full_sides: dict[str, Future[Side]] = {}
        self._claiming = threading.Lock()
        self.counters = self._judge.counters

    async def __call__(self, sample: Sample, branch: Branch) -> Score:
        task = self._task(sample)
        if self._extract:
            branch = replace(branch, text=extracted(task.document, branch.text))
        text = task.document if self._use_full else branch.text
        gated = not self._use_full and self._is_gated(branch)
        if not task.questions:
            return Score(value=None, parts=_size_parts(text, gated=gated, unanswerable=task.unanswerable))
        full, judgements = await self._full(sample.sample_id, task) if self._compare_full else (None, [])
        if self._use_full:
            correct = full.correct if full is not None else None
        elif gated:
            correct = 0
        else:
            side = await self._side(text, task)
            correct, judgements = side.correct, [*judgements, *side.judgements]
        parts = _size_parts(text, gated=gated, unanswerable=task.unanswerable)
        parts |= _percents(correct, None if full is None else full.correct, len(task.questions))
        if self._asks:
            parts |= spent(judgements, priced=self._judge.is_priced)
        if correct is None:
            return Score(value=None, parts=parts)
        return Score(value=correct / len(task.questions) if self._as_fraction else float(correct), parts=parts)

    def _task(self, sample: Sample) -> Task:
        """Return the document and the questions that count; ValueError where the sample has none."""
        document, rows = sample.fields.get("document"), sample.fields.get("questions")
        if not isinstance(document, str) or not document.strip() or not isinstance(rows, Sequence) or not rows:
            raise ValueError(
                "judge_qa needs the fields `document` (a text) and `questions` (a list of {question, answer, "
                "answerable}) in every sample; use data of type repliqa or documents, or a JSONL file with these "
                "fields"
            )
        questions = [_question(row) for row in rows]
        kept = [question for question in questions if question.answerable or not self._skip_unanswerable]
        unanswerable = sum(not question.answerable for question in questions) / len(questions)
        return Task(document=document, questions=kept, unanswerable=unanswerable)

    def _is_gated(self, branch: Branch) -> bool:
        too_long = self._max_length is not None and size_of(branch, self._unit) > self._max_length
        return too_long or (self._unwanted is not None and self._unwanted.search(branch.text) is not None)

    async def _side(self, text: str, task: Task) -> Side:
        """Return the verdicts on a text; one without words answers nothing, which needs no question to the judge."""
        if not text.strip():
            return Side(verdicts=[Verdict(value=int(not question.answerable)) for question in task.questions])
        asked = (self._judge.is_answered(text, question, task.document) for question in task.questions)
        return Side(verdicts=await asyncio.gather(*asked))

    async def _full(self, sample_id: str, task: Task) -> tuple[Side, list[Judgement[Any]]]:
        """Return the verdicts on the whole document and, to the first caller, what they took.

        Callers meanwhile wait for the same verdicts. Only missing ones, and failures, are asked for again.
        """
        with self._claiming:
            future = self._full_sides.get(sample_id)
            is_first = future is None or _has_failed(future)
            if is_first:
                # On the judges' thread: the first asker's event loop may end before the others have asked.
                future = self._full_sides[sample_id] = on_judges_thread(self._side(task.document, task))
        assert future is not None
        side = await asyncio.shield(asyncio.wrap_future(future))
        return side, side.judgements if is_first else []


def extracted(document: str, answer: str) -> str:
    """Return the lines of the document with the numbers that the answer names, in the document's order.

    Other numbers name none.

    >>> extracted("one\\ntwo\\nthree", "3, 1 and 7")
    'one\\nthree'
    """
    named = {int(number) for number in re.findall(r"\d+", answer)}
    return "\n".join(line for number, line in enumerate(document.split("\n"), 1) if number in named)


def _has_failed(future: Future[Side]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None or future.result().correct is None)


def _question(row: Any) -> Question:
    if not isinstance(row, Mapping) or not all(isinstance(row.get(name), str) for name in ("question", "answer")):
        raise ValueError(f"a question must have the texts `question` and `answer`, got {row!r:.80}")
    return Question(question=row["question"], answer=row["answer"], answerable=bool(row.get("answerable", True)))


def _size_parts(text: str, *, gated: bool, unanswerable: float) -> dict[str, float]:
    return {
        "words": float(len(text.split())),
        "characters": float(len(text)),
        "gated": float(gated),
        "unanswerable": unanswerable,
    }


def _percents(correct: int | None, full: int | None, count: int) -> dict[str, float]:
    """Return shares of the questions, 0 to 1 as in the original's charts; what is missing has no share."""
    shares = {"percent": correct, "percent_full": full}
    parts = {name: value / count for name, value in shares.items() if value is not None}
    if len(parts) == len(shares):
        parts["percent_diff"] = parts["percent"] - parts["percent_full"]
    return parts


def letters_of(scripts: Sequence[str]) -> Any:
    """Return a pattern that finds a letter of any of these Unicode scripts; None for no scripts.

    Python's own `re` and `unicodedata` do not know scripts, the `regex` library does.

    >>> letters_of(["Han", "Cyrillic"]).search("a \u6f22") is not None, letters_of(["Han"]).search("\u304b\u306a")
    (True, None)
    """
    import regex

    names = []
    for script in scripts:
        try:
            regex.compile(rf"\p{{Script={script}}}")
        except regex.error:
            raise ValueError(
                f"argument unwanted_scripts: {script!r} is no Unicode script; names are such as Han, Cyrillic, Arabic"
            ) from None
        names.append(rf"\p{{Script={script}}}")
    return regex.compile(f"[{''.join(names)}]") if names else None
