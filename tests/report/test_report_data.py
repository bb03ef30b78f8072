"""A run directory in memory: what follows from its lines, and files that are damaged, half written or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import record
from troupe.errors import DataError
from troupe.report.report_data import day_and_time, read_run

LINES = [
    {"step": 0, "at": "2026-01-01T00:00:00Z", "wall_s": 1.0, "eval/words/accuracy": 0.25},
    {"step": 1, "wall_s": 3.0, "reward/mean": 0.5, "time/rollout_s": 1.0, "time/other_s": 0.5, "time/step_s": 1.5},
    {"step": 2, "wall_s": 6.0, "reward/mean": None, "time/update_s": 2.0, "time/step_s": 2.0, "rollout/tokens": 300},
    {"step": 4, "wall_s": 9.0, "reward/mean": 1.0, "time/rollout_s": 2.0, "eval/words/accuracy": 0.75},
]


def test_points_are_where_a_metric_was_logged_and_values_where_it_was_a_number_in_training() -> None:
    run = record(*LINES)
    assert run.points("reward/mean") == [(1, 0.5), (2, None), (4, 1.0)]
    assert run.values("reward/mean") == [0.5, 1.0]
    assert run.values("eval/words/accuracy") == [0.75]  # step 0 is no training step
    assert run.mean("reward/mean") == 0.75
    assert run.mean("nothing") is None
    assert run.first_and_last("reward/mean") == (0.5, 1.0)
    assert run.first_and_last("nothing") is None
    assert record({"step": 1, "x": None}).first_and_last("x") is None


def test_names_come_in_order_of_appearance_without_what_is_no_metric() -> None:
    assert record(*LINES).names()[:3] == ["eval/words/accuracy", "reward/mean", "time/rollout_s"]
    assert "wall_s" not in record(*LINES).names()


def test_phases_are_timed_parts_of_steps_with_the_rest_last() -> None:
    run = record(*LINES)
    assert run.phases == ["rollout", "update", "other"]
    # Three training steps: the mean is over all of them, also those without the phase.
    assert run.seconds("rollout") == (1.0 + 2.0) / 3
    assert run.seconds("update") == 2.0 / 3
    assert record().seconds("rollout") == 0


def test_the_speed_of_a_phase_is_logged_or_its_tokens_over_its_seconds() -> None:
    run = record(*LINES)
    assert run.tokens_per_second("rollout") == 300 / 3.0
    assert run.tokens_per_second("update") is None
    logged = record({"step": 1, "rollout/tokens_per_second": 7.0, "rollout/tokens": 9, "time/rollout_s": 1.0})
    assert logged.tokens_per_second("rollout") == 7.0


def test_what_a_run_without_a_line_says() -> None:
    empty = record()
    assert (empty.last_step, empty.wall_s, empty.state, empty.headline, empty.phases) == (0, 0.0, "unknown", None, [])
    assert (record(*LINES).last_step, record(*LINES).wall_s) == (4, 9.0)
    assert record({"step": 1}).wall_s == 0.0
    assert record(status={"state": "failed"}).state == "failed"


@pytest.mark.parametrize(
    ("config", "names", "best", "headline"),
    [
        ({"evaluation": {"best_metric": "f1"}}, ["eval/a/em", "eval/a/f1"], "f1", "eval/a/f1"),
        ({"evaluation": {"metrics": [{"fn": "x:y", "name": "em"}, {"fn": "f1"}]}}, ["eval/a/f1"], "em", "eval/a/f1"),
        ({"evaluation": {"metrics": [{"fn": "math_answer"}]}}, [], "math_answer", None),
        ({}, ["sft/nll", "eval/a/rougeL", "eval/a/nll"], "nll", "eval/a/nll"),
        ({}, ["dpo/accuracy", "eval/a/accuracy"], "accuracy", "eval/a/accuracy"),
        ({"evaluation": None}, ["reward/mean", "eval/a/x"], None, "eval/a/x"),
    ],
)
def test_the_headline_is_the_held_out_metric_that_decides(
    config: dict[str, Any], names: list[str], best: str | None, headline: str | None
) -> None:
    run = record({"step": 1, **dict.fromkeys(names, 0.5)}, config=config)
    assert (run.best_name, run.headline) == (best, headline)


@pytest.mark.parametrize(
    ("program", "method"),
    [("train_grpo.py", "grpo"), ("train_reward_model.py", "reward_model"), ("mine.py", "run"), (None, "run")],
)
def test_the_method_is_the_job(program: str | None, method: str) -> None:
    assert record(environment={"program": program}).method == method


@pytest.mark.parametrize(
    ("lines", "config", "bound"),
    [
        ([{"step": 1, "consistency/max_gap": 0.1}, {"step": 2, "consistency/max_gap": 0.3}], {}, 0.3),
        ([], {"consistency": {"max_gap": 0.2}}, 0.2),
        ([{"step": 1, "consistency/max_gap": 0.1}], {"consistency": {"max_gap": 0.2}}, 0.1),
        ([], {"policy": {"precision": "fp32"}}, 1e-3),
        ([], {"policy": {"precision": "bf16"}}, None),
        ([], {}, None),
    ],
)
def test_the_bound_of_the_gate_is_as_logged_as_set_or_that_of_fp32(
    lines: list[dict[str, Any]], config: dict[str, Any], bound: float | None
) -> None:
    assert record(*lines, config=config).consistency_bound == bound


def test_restarts_are_counted_among_the_events() -> None:
    events = [{"kind": "restarted"}, {"kind": "failed"}, {"kind": "restarted"}, {}]
    assert record(events=events).restarts == 2


# -- files -------------------------------------------------------------------------------------------------------------


def test_any_file_but_the_recipe_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\nrun: {name: '${x}'}\n")
    run = read_run(tmp_path)
    assert run.name == tmp_path.name
    assert run.config == {"seed": 3, "run": {"name": "${x}"}}  # references stay what they are
    assert (run.metrics, run.events, run.answers, run.rollouts, run.placement) == ([], [], [], [], [])
    assert (run.status, run.environment, run.timeline) == ({}, {}, {})
    with pytest.raises(DataError, match="is not a run directory: it has no config"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[1, 2]", "just text"])
def test_a_recipe_that_is_no_mapping_is_an_empty_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    if text == "just text":
        return  # omegaconf reads a bare word as a key without a value
    assert read_run(tmp_path).config in ({}, {"just text": None})


def test_lines_are_sorted_by_step_and_those_without_a_step_or_an_end_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    lines = [{"step": 2, "x": 2}, {"x": 9}, {"step": "3"}, {"step": 1, "x": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "x"')
    assert [line["x"] for line in read_run(tmp_path).metrics] == [2, 1][::-1]


@pytest.mark.parametrize(
    ("found", "count"),
    [
        ([{"low": 0.5, "high": 0.6, "count": 2, "confidence": 0.55, "accuracy": 1.0}], 1),
        ([{"low": 0.5, "high": 0.6, "count": 0, "confidence": 0.55, "accuracy": 1.0}], 0),
        ([{"low": 0.5, "high": 0.6, "count": 2, "confidence": 0.55, "accuracy": None}], 0),
        ([{"low": 0.5}, 3, None], 0),
        ({"low": 0.5}, 0),
    ],
)
def test_bins_of_a_calibration_have_all_their_numbers_or_are_left_out(found: Any, count: int, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "calibration.json").write_text(json.dumps(found))
    assert len(read_run(tmp_path).calibration) == count


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        ("2026-03-01T12:30:05.123Z", "2026-03-01 12:30:05"),
        ("2026-03-01T12:30:05+00:00", "2026-03-01 12:30:05"),
        ("yesterday", "yesterday"),
        ("", ""),
    ],
)
def test_a_time_is_shown_to_the_second_and_what_is_none_as_it_is(at: str, shown: str) -> None:
    assert day_and_time(at) == shown
