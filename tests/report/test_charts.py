"""The charts of a report as data: what shares a chart, what is folded into a line, and the numbers behind both."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.report.pages import labels, record
from troupe.report import charts
from troupe.report.charts import PHASE_COLORS, chart_groups, phase_chart, phase_color, run_numbers, short
from troupe.report.report_data import RunRecord
from troupe.report.report_titles import group_of, plots, title_of, training_of


def growing(*names: str, steps: int = 3, by: float = 1.0, **given: Any) -> RunRecord:
    """A run whose metrics all grow, each from another number."""
    lines = [
        {"step": step, **{name: place + by * step for place, name in enumerate(names)}} for step in range(1, steps + 1)
    ]
    return record(*lines, **given)


def titles(runs: list[RunRecord]) -> dict[str, list[str]]:
    return {group: [chart["title"] for chart in found] for group, found in chart_groups(runs)[0].items()}


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_columns_name_the_lines_that_have_a_value_and_what_is_no_number_is_a_gap() -> None:
    lines = [{"step": 0, "a": 1.0}, {"step": 5, "b": math.inf, "a": "text"}, {"step": 7, "b": 2, "wall_s": 3.5}]
    found = run_numbers(record(*lines))
    assert found["x"] == {"step": [0, 5, 7], "tokens": [], "time": [0.0, 0.0, 3.5]}
    assert found["metrics"] == {
        "a": {"lines": [0, 1], "values": [1.0, None]},
        "b": {"lines": [1, 2], "values": [None, 2]},
    }
    assert run_numbers(record())["metrics"] == {}


def test_tokens_are_summed_up_to_each_step_by_the_first_metric_that_counts_them() -> None:
    lines = [
        {"step": 0},
        {"step": 1, "rollout/tokens": 10, "update/tokens": 99},
        {"step": 2},
        {"step": 3, "rollout/tokens": 5},
    ]
    assert run_numbers(record(*lines))["x"]["tokens"] == [0, 10, 10, 15]
    packed = record({"step": 1, "data/tokens": 4, "rollout/tokens": 7}, {"step": 2, "data/tokens": 4})
    assert run_numbers(packed)["x"]["tokens"] == [4, 8]


def test_of_a_long_run_lines_are_left_out_evenly_and_tokens_are_still_those_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(charts, "MOST_VALUES", 10)  # step and tokens: two values a line
    run = record(*({"step": step, "data/tokens": 1} for step in range(1, 18)))
    found = run_numbers(run)["x"]
    assert found["step"] == [1, 5, 9, 13, 17]
    assert found["tokens"] == [1, 5, 9, 13, 17]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9_999, "9999"),
        (10_000, "10.0k"),
        (999_949, "999.9k"),
        (-1_234_567, "-1.2M"),
        (99.994, "99.99"),
        (100.4, "100"),
        (0.00099, "9.9e-4"),
        (-1e-12, "-1e-12"),
        (1e15, "1000000000.0M"),
    ],
)
def test_a_number_keeps_its_sign_and_four_digits(value: float, text: str) -> None:
    assert short(value) == text


# -- groups ------------------------------------------------------------------------------------------------------------


def test_a_metric_is_in_the_part_that_its_name_begins_with_and_others_come_last() -> None:
    run = growing("mine/odd", "policy/kl", "rollout/lag", "reward/mean", "value/loss", "consistency/logprob_gap")
    found = titles([run])
    assert list(found) == ["Learning", "Policy", "Critic", "Rollouts", "Consistency and speed", "Other metrics"]
    assert found["Other metrics"] == ["Odd"]


def test_a_job_without_generators_has_no_consistency_in_its_heading() -> None:
    assert list(titles([growing("sft/nll", "tokens_per_second")])) == ["Learning", "Data and speed"]


def test_the_deciding_metric_comes_first_then_held_out_ones_then_those_with_a_title() -> None:
    run = growing(
        "reward/zeta",
        "reward/mean",
        "eval/a/other",
        "eval/a/f1",
        "reward/alpha",
        config={"evaluation": {"best_metric": "f1"}},
    )
    assert titles([run])["Learning"] == [
        "F1, held out",
        "Other, held out",
        "Reward",
        "Reward: alpha",
        "Reward: zeta",
    ]


@pytest.mark.parametrize(
    ("values", "folded"),
    [
        ([0.5, 0.5, 0.5], "0.500"),
        ([0, 0, 0], "0"),
        ([1.0, 1.0 + 1e-7, 1.0], "1.00"),  # no axis that a person could read
        ([1.0, 1.001, 1.0], None),
        ([0.5, None, 0.5], None),  # a gap is worth a look
        ([1e-9, 2e-9, 1e-9], None),
    ],
)
def test_a_constant_metric_is_a_line(values: list[float | None], folded: str | None) -> None:
    run = record(*({"step": step, "policy/entropy": value} for step, value in enumerate(values, start=1)))
    drawn, lines = chart_groups([run])
    assert [line["value"] for line in lines] == ([] if folded is None else [folded])
    assert bool(drawn) == (folded is None)


def test_a_metric_with_the_values_of_another_is_a_line_and_the_better_known_one_is_drawn() -> None:
    lines = [{"step": step, "zzz/copy": step / 2, "reward/mean": step / 2} for step in (1, 2, 3)]
    drawn, folded = chart_groups([record(*lines)])
    assert [chart["title"] for group in drawn.values() for chart in group] == ["Reward"]
    assert folded == [{"metric": "zzz/copy", "title": "Copy", "value": "equals reward/mean"}]


def test_the_gap_of_the_gate_and_the_deciding_metric_are_drawn_also_where_they_are_constant() -> None:
    lines = [{"step": step, "consistency/logprob_gap": 0.0, "eval/a/f1": 1.0, "policy/kl": 0.0} for step in (1, 2)]
    drawn, folded = chart_groups([record(*lines)])
    assert {metric for group in drawn.values() for chart in group for metric in chart["metrics"]} == {
        "consistency/logprob_gap",
        "eval/a/f1",
    }
    assert [line["metric"] for line in folded] == ["policy/kl"]


def test_one_value_alone_is_no_constant() -> None:
    assert chart_groups([record({"step": 1, "policy/kl": 0.5})])[1] == []


# -- curves ------------------------------------------------------------------------------------------------------------


def test_of_several_runs_each_metric_has_a_chart_and_each_run_a_curve_of_its_colour() -> None:
    runs = [growing("reward/mean", "reward/shaped", name="a"), growing("reward/mean", name="b", by=2.0)]
    (learning,) = chart_groups(runs)[0].values()
    by_title = {chart["title"]: chart for chart in learning}
    assert labels(by_title["Reward"]) == ["a", "b"]
    assert [curve["color"] for curve in by_title["Reward"]["curves"]] == [0, 1]
    assert labels(by_title["Reward after shaping"]) == ["a"]
    # Of one run the two are read together.
    (alone,) = chart_groups(runs[:1])[0].values()
    assert [labels(chart) for chart in alone] == [["score", "after shaping"]]


def test_a_page_of_one_run_among_others_numbers_it_by_its_place() -> None:
    (learning,) = chart_groups([growing("reward/mean")], first=3)[0].values()
    assert [curve["run"] for curve in learning[0]["curves"]] == [3]


def test_a_held_out_side_is_dashed_and_has_the_colour_of_its_training_side() -> None:
    names = ["reward_model/chosen", "reward_model/rejected", "eval/p/chosen", "eval/p/rejected"]
    (learning,) = chart_groups([growing(*names)])[0].values()
    (chart,) = learning
    looks = {curve["metric"]: (curve["color"], curve["dashed"]) for curve in chart["curves"]}
    assert looks == {
        "reward_model/chosen": (0, False),
        "eval/p/chosen": (0, True),
        "reward_model/rejected": (1, False),
        "eval/p/rejected": (1, True),
    }


def test_the_gap_has_its_bound_and_the_noise_of_rounding_beside_it() -> None:
    names = ("consistency/logprob_gap", "consistency/noise")
    runs = [
        growing(*names, name="a", config={"consistency": {"max_gap": 0.2}}),
        growing("consistency/logprob_gap", name="b", by=3.0, config={"consistency": {"max_gap": 0.1}}),
    ]
    (chart,) = chart_groups(runs)[0]["Consistency and speed"]
    assert chart["bound"] == 0.1  # the strictest
    assert labels(chart) == ["a", "b", "rounding alone"]


# -- phases ------------------------------------------------------------------------------------------------------------


def test_seconds_of_phases_are_stacked_bars_in_their_own_colours() -> None:
    run = growing("time/rollout_s", "time/update_s", "time/tokenize_s", "time/other_s", "time/step_s")
    chart = phase_chart(run, 2)
    assert chart["stacked"]
    assert [(curve["label"], curve["run"]) for curve in chart["curves"]] == [
        ("rollout", 2),
        ("update", 2),
        ("tokenize", 2),
        ("other", 2),
    ]
    assert phase_color(run, "rollout") == PHASE_COLORS["rollout"]
    used = {phase_color(run, phase) for phase in run.phases}
    assert len(used) == len(run.phases)  # a phase without a colour of its own takes a free one


def test_more_phases_than_colours_still_have_one() -> None:
    run = growing(*(f"time/part{number}_s" for number in range(12)))
    assert all(0 <= phase_color(run, phase) < 8 for phase in run.phases)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "group", "title"),
    [
        ("policy/kl", "Policy", ("KL to the reference", "how far the policy moved, nats per token")),
        ("sft/learning_rate", "Optimizer", ("Learning rate", "")),
        ("rollout/tokens_per_second", "Consistency and speed", ("Tokens per second, rollout", "within the phase")),
        ("update/tokens", "Consistency and speed", ("Tokens, update", "of a step")),
        ("eval/my_set/grad_norm", "Learning", ("Gradient norm, held out", "my set")),
        ("reward/rouge", "Learning", ("Reward: ROUGE", "unweighted part")),
        ("reward/", "Learning", ("Reward: ", "unweighted part")),
        ("value/odd_one", "Critic", ("Odd one", "value")),
        ("dpo/odd_one", "Learning", ("Odd one", "")),
        ("odd", "Other metrics", ("Odd", "")),
        ("consistency/max_gap", None, ("Max gap", "consistency")),
        ("time/update_s", None, ("Update s", "time")),
        ("time/step_s", "Consistency and speed", ("Seconds a step", "")),
    ],
)
def test_what_a_metric_is_called_and_where_it_stands(name: str, group: str | None, title: tuple[str, str]) -> None:
    assert (group_of(name), title_of(name)) == (group, title)


def test_the_training_side_of_a_held_out_metric_is_the_family_that_the_run_has() -> None:
    assert training_of("eval/a/nll", ["sft/nll"]) == "sft/nll"
    assert training_of("eval/a/nll", ["dpo/nll", "eval/a/nll"]) == "dpo/nll"
    assert training_of("eval/a/nll", ["eval/a/nll"]) == "eval/a/nll"
    assert training_of("sft/nll", []) == "sft/nll"


def test_quantities_share_a_chart_only_where_the_run_has_them_all() -> None:
    both, one = plots(["value/return", "value/mean"]), plots(["value/return"])
    assert [plot.title for plot in both] == ["Returns and values"]
    assert [plot.title for plot in one] == ["Return"]
    assert one[0].curves == {"value/return": ""}
