"""The report of a pipeline is what its directory holds: states, times, key metrics, curves, tables and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fake_run import fake_run
from tests.report.pages import charts_of, curve, data_of
from troupe.errors import DataError
from troupe.files import read_lines, to_json
from troupe.ops.pipeline import STATE_FILE
from troupe.ops.pipeline_report import build_pipeline_report


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages with runs, one evaluation, one that waits, one that failed."""
    path = tmp_path_factory.mktemp("pipeline")
    fake_run(path, name="warm", steps=10)
    fake_run(path, name="rl", steps=20, seed=3)
    (path / "exam").mkdir()
    (path / "exam" / "metrics.json").write_text(
        to_json({"models": {"rl": {"acc<b>": {"mean": 0.5, "low": 0.4, "high": 0.6}}}})
    )
    (path / "rl.log").write_text("end\n")
    stages = {
        "warm": {"job": "train_sft", "state": "finished", "begun": "2026-03-01T12:30:05Z", "seconds": 65},
        "rl": {"job": "train_grpo", "state": "finished", "seconds": 5, "inputs": {"model.path": [{"stage": "warm", "path": "x", "identity": "y"}]}},
        "exam": {"job": "evaluate", "state": "failed", "error": "<i>no</i>", "tail": ["one", "two"]},
        "later": {"job": "evaluate"},
        "of another version": {"kind": "?"},
    }  # fmt: skip
    (path / STATE_FILE).write_text(to_json({"name": "chain", "stages": stages}))
    return path


def test_stages_have_their_states_numbers_inputs_and_links(directory: Path) -> None:
    page = build_pipeline_report(directory).read_text()
    assert '<span class="state failed">failed</span>' in page
    assert "2 of 4 stages finished in 1m10s. Begun 2026-03-01 12:30:05 UTC." in page
    assert "&lt;i&gt;no&lt;/i&gt;" in page
    assert "one\ntwo" in page
    row = page.partition("<td>rl</td>")[2].partition("</tr>")[0]
    assert "<td>warm</td>" in row
    assert re.findall('href="(.*?)"', row) == ["rl/report.html", "rl.log"]
    assert "0.500 (0.400 to 0.600)" in page
    assert "acc&lt;b&gt;" in page


def test_each_stage_has_its_own_curves(directory: Path) -> None:
    page = build_pipeline_report(directory).read_text()
    assert [run["name"] for run in data_of(page)["runs"]] == ["warm", "rl"]
    lines = read_lines(directory / "rl" / "metrics.jsonl")
    assert curve(page, "reward/mean", run=1) == [[line["step"], line["reward/mean"]] for line in lines if line["step"]]
    assert charts_of(page)["Reward"]["curves"][0]["run"] == 1  # the last chart of that title is the second stage's


def test_a_directory_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a pipeline's directory"):
        build_pipeline_report(tmp_path)
