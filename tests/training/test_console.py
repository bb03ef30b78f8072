"""What a run shows at its end: the change on the samples that were answered before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rich

from troupe.files import JsonLines
from troupe.report.samples import paired_change
from troupe.training.console import paired_answers, print_summary


def answer(step: int, sample_id: str, **metrics: float) -> dict[str, Any]:
    told = {"prompt": "?", "gold": "8", "text": "8", "metrics": metrics}
    return {"step": step, "set": "gsm8k", "sample_id": sample_id, **told}


ANSWERS = [
    *(answer(0, name, **{"perplexity/gold": value}) for name, value in (("a", 9.0), ("b", 5.0), ("c", 4.0))),
    *(answer(10, name, **{"perplexity/gold": value}) for name, value in (("a", 1.0), ("b", 1.0))),
    *(answer(20, name, **{"perplexity/gold": value}) for name, value in (("b", 3.0), ("a", 6.0), ("d", 90.0))),
]


def test_a_change_is_paired_by_sample_over_first_and_last_evaluation() -> None:
    # a: 6 - 9 = -3, b: 3 - 5 = -2; c and d were answered once. Every resampling lies between the two.
    found = paired_change(paired_answers(ANSWERS), "gsm8k/perplexity/gold")
    assert found is not None
    change, count = found
    assert (change.mean, change.low, change.high, count) == (-2.5, -3.0, -2.0, 2)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("gsm8k/perplexity/gold", ANSWERS[:3]),
        ("gsm8k/response_tokens", ANSWERS),
        ("other/perplexity/gold", ANSWERS),
        ("gsm8k/perplexity/gold", []),
    ],
    ids=["one evaluation", "no such metric per answer", "another set", "nothing"],
)
def test_without_two_evaluations_of_a_metric_there_is_no_change(name: str, answers: list[dict[str, Any]]) -> None:
    assert paired_change(paired_answers(answers), name) is None


def test_the_summary_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich.get_console(), "_width", 160)  # it may have looked at COLUMNS in an earlier test
    metric = "eval/gsm8k/perplexity/gold"
    JsonLines(tmp_path / "metrics.jsonl").append({"step": 0, metric: 6.0}, {"step": 20, metric: 4.5})
    JsonLines(tmp_path / "answers.jsonl").append(*ANSWERS)
    print_summary(tmp_path)
    shown = "".join(capsys.readouterr().out.split())
    assert "-2.500(-3.000to-2.000)" in shown
    assert "heldout:gsm8k,changesover2samples" in shown


def test_samples_are_shown_without_the_system_turn_that_all_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich.get_console(), "_width", 160)
    asked = {"prompt": "system: Be brief.\n\nuser: 3+5?\n\nassistant: 9\n\nuser: Sure?"}
    JsonLines(tmp_path / "metrics.jsonl").append({"step": 0}, {"step": 20})
    JsonLines(tmp_path / "answers.jsonl").append(*({**answer(step, "a", accuracy=1.0), **asked} for step in (0, 20)))
    print_summary(tmp_path)
    shown = "".join(capsys.readouterr().out.split())
    assert "user:3+5?" in shown
    assert "Sure?" in shown
    assert "brief" not in shown
