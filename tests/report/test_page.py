"""The page around a report, and who builds it: escaping, secrets, tiles, and a report that cannot be built."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import data_of, record
from troupe.config.grpo import GRPOConfig
from troupe.errors import ConfigError
from troupe.report.observers import ReportObserver, open_run
from troupe.report.report import build_comparison, report_page
from troupe.report.report_data import RunRecord


def page_of(run: RunRecord) -> str:
    return report_page(run, {"since": "x", "run": run.name, "runs": [run.name], "gone": False})


def tile(page: str, label: str) -> str:
    return page.partition(f"<p>{label}</p>")[2].partition("</div>")[0]


def test_the_data_of_a_page_reads_back_as_what_it_was() -> None:
    text = "</script>&<\u2028'\"é"
    assert data_of(page_of(record(name=text)))["runs"][0]["name"] == text


def test_a_half_character_becomes_a_question_mark() -> None:
    assert "a? b" in page_of(record(config_text="a\ud83d b"))


def test_a_secret_is_no_text_of_a_page_and_no_number_of_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "open<sesame>0123")
    run = record({"step": 1, "reward/open<sesame>0123": 1.0}, config_text="x: open<sesame>0123")
    page = page_of(run)
    assert "sesame" not in page
    assert "x: $MY_API_KEY" in page
    assert list(data_of(page)["runs"][0]["metrics"]) == ["reward/$MY_API_KEY"]


@pytest.mark.parametrize(
    ("config", "environment", "words"),
    [
        (
            {
                "model": {"path": "a/b"},
                "data": {"type": "word_problems"},
                "rollout": {"prompts_per_step": 4, "group_size": 8},
            },
            {},
            "a/b · word problems · 4 prompts x 8 branches = 32 answers a step.",
        ),
        (
            {"model": {"num_layers": 2, "hidden_size": 64}, "rollout": {"prompts_per_step": 4, "group_size": 1}},
            {},
            "2 layers, 64 wide, from scratch · 4 answers a step.",
        ),
        ({"batch_size": 8, "max_length": 64}, {}, "8 samples a step, at most 64 tokens each."),
        ({"batch_size": 8}, {"program": "train_dpo.py"}, "8 prompts with their answers a step."),
    ],
)
def test_a_run_is_told_in_a_sentence(config: dict[str, Any], environment: dict[str, Any], words: str) -> None:
    assert words in page_of(record(config=config, environment=environment))


def test_tiles_are_the_headline_the_steps_and_the_largest_gap() -> None:
    lines = [
        {"step": 0, "eval/a/f1": 0.25},
        {"step": 1, "wall_s": 90.0, "reward/mean": 0.5, "tokens_per_second": 100, "consistency/logprob_gap": 1e-4},
        {"step": 2, "wall_s": 3700.0, "reward/mean": 0.75, "tokens_per_second": 300, "consistency/logprob_gap": 5e-5},
    ]
    config = {"evaluation": {"best_metric": "f1"}, "consistency": {"max_gap": 1e-3}}
    page = page_of(record(*lines, config=config, status={"steps": 4}))
    assert "step 0 alone" in tile(page, "F1, held out")
    assert "0.500" in tile(page, "Reward")
    assert "0.750" in tile(page, "Reward")
    assert "of 4" in tile(page, "Steps")
    assert "200" in tile(page, "Tokens per second")
    assert "1e-4" in tile(page, "Largest trainer gap")
    assert "of 0.001" in tile(page, "Largest trainer gap")


def test_two_runs_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "same").mkdir(parents=True)
        (tmp_path / place / "same" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ConfigError, match="two of the runs have the same name; a comparison needs names"):
        build_comparison([tmp_path / "a" / "same", tmp_path / "b" / "same"], tmp_path / "out.html")


def test_a_comparison_shows_the_settings_that_differ_and_not_the_runs_own(tmp_path: Path) -> None:
    for name, settings in (("a", "seed: 0\nsteps: 3\n"), ("b", "seed: 1\nsteps: 3\nextra: {x: 1}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"{settings}run: {{name: {name}}}\n")
    page = build_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out.html").read_text()
    assert "<td>seed</td><td>0</td><td>1</td>" in page
    assert "<td>extra.x</td><td>–</td><td>1</td>" in page
    assert "<td>steps</td>" not in page
    assert "<td>run.name</td>" not in page


# -- at the end of a run -----------------------------------------------------------------------------------------------


def test_a_report_that_cannot_be_built_is_told_and_the_run_ends_as_it_would(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(directory: Path) -> Path:
        raise ZeroDivisionError("a chart")

    monkeypatch.setattr("troupe.report.report.build_report", broken)
    with caplog.at_level(logging.INFO), open_run(recipe()) as run:
        run.end_step(0)
    assert "could not be built; jobs/report.py rebuilds it" in caplog.text
    assert json.loads((run.directory / "status.json").read_text())["state"] == "finished"


def test_a_report_is_built_again_only_where_something_happened_since(recipe: Any) -> None:
    config: GRPOConfig = recipe()
    with open_run(config) as run:
        run.end_step(0)
    again, page = ReportObserver(run, again=True), run.directory / "report.html"
    page.write_text("untouched")
    again.on_close("finished")
    assert page.read_text() == "untouched"
    with open(run.directory / "events.jsonl", "a") as file:
        file.write('{"kind": "tracker_failed"}\n')
    os.utime(page, (0, 0))
    again.on_close("finished")
    assert "tracker_failed" in page.read_text()
