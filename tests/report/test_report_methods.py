"""The report and the progress line of supervised runs, reward models, DPO and PPO."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.report.pages import charts_of, curve, labels
from troupe.config.grpo import PPOConfig
from troupe.config.run import RunConfig
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig
from troupe.files import to_json
from troupe.processes.progress import ProgressLines, headline
from troupe.report.charts import reliability_chart
from troupe.report.observers import open_run
from troupe.report.report import build_comparison, build_report
from troupe.report.report_titles import group_of, plots, title_of
from troupe.runs.run import Run

BINS = [
    {"low": 0.5, "high": 0.55, "count": 30, "confidence": 0.53, "accuracy": 0.6},
    {"low": 0.95, "high": 1.0, "count": 10, "confidence": 0.97, "accuracy": 0.8},
]


def written(directory: Path, recipe: type, training: Mapping[str, float], held_out: Mapping[str, float]) -> Run:
    """A run of two steps, evaluated before and after, whose metrics grow by a twentieth."""
    config = recipe(run=RunConfig(name="small", directory=str(directory)), steps=2)
    with open_run(config) as run:
        run.log(held_out)
        run.end_step(0)
        for step in run.steps(1, 2):
            run.log({name: value * (0.95 + 0.05 * step) for name, value in training.items()})
            run.log({"data/tokens": 100, "data/left_out": 1, "tokens_per_second": 50 * step})
            run.log({name: value * 1.05 for name, value in held_out.items()} if run.is_last(step) else {})
            run.end_step(step)
    return run


def test_training_and_held_out_loss_of_sft_are_two_curves_of_one_chart(tmp_path: Path) -> None:
    training = {"sft/loss": 2.0, "sft/nll": 2.0, "sft/grad_norm": 0.5, "sft/learning_rate": 1e-4}
    run = written(tmp_path, SFTConfig, training, {"eval/docs/nll": 2.5, "eval/docs/rougeL": 0.25})
    page = (run.directory / "report.html").read_text()
    drawn = charts_of(page)
    assert labels(drawn["NLL of answers"]) == ["training", "held out"]
    assert [curve(page, name) for name in ("sft/nll", "eval/docs/nll")] == [
        [[1, 2.0], [2, 2.1]],
        [[0, 2.5], [2, 2.625]],
    ]
    assert "ROUGE-L, held out" in drawn
    assert "Loss" not in drawn  # it is the NLL
    assert page.index("Optimizer</h2>") < page.index(">Gradient norm</h3>") < page.index("Data and speed</h2>")
    assert "64 samples a step, at most 512 tokens each" in page


def test_a_loss_that_is_not_the_nll_has_its_chart(tmp_path: Path) -> None:
    run = written(tmp_path, SFTConfig, {"sft/loss": 2.2, "sft/nll": 2.0}, {"eval/docs/nll": 2.5})
    assert "Loss" in charts_of((run.directory / "report.html").read_text())


def test_a_reward_model_shows_pairs_scores_and_how_far_its_confidence_can_be_believed(tmp_path: Path) -> None:
    names = {"accuracy": 0.7, "margin": 0.3, "nll": 0.6, "chosen": 0.2, "rejected": -0.1}
    run = written(
        tmp_path,
        RewardModelTrainingConfig,
        {f"reward_model/{name}": value for name, value in names.items()},
        {f"eval/pairs/{name}": value for name, value in {**names, "calibration_error": 0.09}.items()},
    )
    assert "Reliability" not in (run.directory / "report.html").read_text()
    (run.directory / "calibration.json").write_text(to_json(BINS))
    page = build_report(run.directory).read_text()
    drawn = charts_of(page)
    assert labels(drawn["Accuracy on pairs"]) == ["training", "held out"]
    assert labels(drawn["Scores"]) == ["better", "better, held out", "worse", "worse, held out"]
    assert {"Margin", "NLL of preferences", "Calibration error, held out", "Reliability"} <= set(drawn)
    assert "40 held-out pairs" in page
    assert re.search(r"<p>Accuracy, held out</p>", page)  # the first tile


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"low": 0.5}]', "[1]"])
def test_a_calibration_that_cannot_be_read_is_left_out(tmp_path: Path, content: str) -> None:
    run = written(tmp_path, RewardModelTrainingConfig, {"reward_model/accuracy": 0.7}, {"eval/pairs/accuracy": 0.7})
    (run.directory / "calibration.json").write_text(content)
    assert "Reliability" not in build_report(run.directory).read_text()


def test_a_reliability_chart_has_accuracy_over_confidence_beside_the_diagonal() -> None:
    x, accuracy, diagonal = reliability_chart(BINS)["table"]
    assert x == diagonal == [0.5, 0.53, 0.97, 1.0]
    assert accuracy == [None, 0.6, 0.8, None]


def test_dpo_shows_the_implicit_rewards_of_both_answers(tmp_path: Path) -> None:
    names = {"accuracy": 0.7, "margin": 0.3, "nll": 0.6, "chosen_reward": 0.2, "rejected_reward": -0.1}
    run = written(
        tmp_path,
        DPOConfig,
        {f"dpo/{name}": value for name, value in names.items()},
        {f"eval/pairs/{name}": value for name, value in names.items()},
    )
    drawn = charts_of((run.directory / "report.html").read_text())
    assert labels(drawn["Implicit rewards"]) == ["better", "better, held out", "worse", "worse, held out"]
    assert {"Accuracy on pairs", "Margin", "NLL of preferences"} <= set(drawn)


def test_ppo_shows_its_critic_and_what_became_of_the_reward(tmp_path: Path) -> None:
    metrics = [
        "reward/mean", "reward/shaped", "reward/reward_model", "reward/reward_model/raw", "reward/reward_model/reference",
        "reward/clipped_fraction", "policy/kl", "policy/kl_coef", "policy/kl_per_answer", "value/loss", "value/error",
        "value/explained_variance", "value/return", "value/mean", "value/clip_fraction",
    ]  # fmt: skip
    run = written(
        tmp_path,
        PPOConfig,
        {name: 0.5 + place / 100 for place, name in enumerate(metrics)},
        {"eval/words/accuracy": 0.5},
    )
    page = (run.directory / "report.html").read_text()
    drawn = charts_of(page)
    assert labels(drawn["Reward"]) == ["score", "after shaping"]
    assert labels(drawn["Scores of the reward model"]) == ["answers", "references"]
    assert labels(drawn["Returns and values"]) == ["returns", "values"]
    assert {"KL coefficient", "KL of an answer", "Clipped scores", "Explained variance", "Error of the critic"} <= set(
        drawn
    )
    assert page.index("Policy</h2>") < page.index("Critic</h2>") < page.index(">Explained variance</h3>")


def test_restarts_are_told_at_the_top_and_marked_among_the_events(tmp_path: Path) -> None:
    run = written(tmp_path, SFTConfig, {"sft/nll": 2.0}, {})
    assert "Restarted" not in (run.directory / "report.html").read_text()
    run.event("restarted", error="WorkerError: policy 0 died")
    page = build_report(run.directory).read_text()
    assert "Restarted 1 time." in page
    assert '<span class="restarted">restarted</span>' in page


def test_a_comparison_has_one_metric_in_a_chart(tmp_path: Path) -> None:
    runs = [
        written(tmp_path / name, SFTConfig, {"sft/nll": 2.0}, {"eval/docs/nll": 2.5}).directory for name in ("a", "b")
    ]
    runs[1] = runs[1].rename(tmp_path / "other")
    drawn = charts_of(build_comparison(runs, tmp_path / "compare.html").read_text())
    assert labels(drawn["NLL of answers"]) == labels(drawn["NLL, held out"]) == ["small", "other"]


def test_every_metric_is_drawn_once_whatever_their_order() -> None:
    names = ["eval/a/nll", "eval/b/nll", "reward/odd", "sft/nll", "eval/a/rougeL", "eval/a/accuracy"]
    for order in (names, names[::-1]):
        found = plots(order)
        assert sorted(metric for plot in found for metric in plot.curves) == sorted(names)
        shared = next(plot for plot in found if len(plot.curves) > 1)
        assert list(shared.curves.values()) == [
            "training",
            *(f"held out, {name.split('/')[1]}" for name in order if name.endswith("/nll") and name != "sft/nll"),
        ]


def test_metrics_without_a_title_are_called_by_their_names() -> None:
    assert title_of("eval/tldr/rouge2") == ("ROUGE-2, held out", "tldr")
    assert title_of("eval/tldr/short_answers") == ("Short answers, held out", "tldr")
    assert title_of("critic/grad_norm") == ("Gradient norm", "critic")
    assert [group_of(name) for name in ("dpo/grad_norm", "dpo/odd", "critic/grad_norm", "time/update_s", "odd")] == [
        "Optimizer", "Learning", "Critic", None, "Other metrics"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"eval/d/rougeL": 0.2, "eval/d/nll": 2.5, "sft/nll": 2.0}, {"nll": "2.000", "held-out nll": "2.500"}),
        ({"eval/d/nll": 0.7, "eval/d/accuracy": 0.6, "reward_model/nll": 0.65, "reward_model/accuracy": 0.625},
         {"nll": "0.650", "accuracy": "0.625", "held-out accuracy": "0.600"}),
        ({"eval/d/accuracy": 0.6, "dpo/nll": 0.65, "dpo/accuracy": 0.625, "tokens_per_second": 1234.5},
         {"nll": "0.650", "accuracy": "0.625", "held-out accuracy": "0.600", "tokens/s": "1,234"}),
        ({"reward/mean": 0.5, "eval/w/accuracy": 0.6}, {"reward": "0.500", "held-out accuracy": "0.600"}),
        ({"reward/mean": 0.5, "eval/w/accuracy": 0, "evaluated at step": 0},
         {"reward": "0.500", "held-out accuracy": "0.000 (step 0)"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_the_progress_line_shows_training_and_the_deciding_held_out_metric(metrics, shown) -> None:
    assert headline(metrics) == shown


def test_a_line_in_a_log_has_them_too() -> None:
    stream = io.StringIO()
    ProgressLines("sft", 1, 2, stream).update(2, {"sft/nll": 2.0, "eval/d/nll": 2.5})
    assert stream.getvalue().startswith("sft  step 2/2  nll 2.000  held-out nll 2.500  ")
