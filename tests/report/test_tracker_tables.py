"""A tracker's names and tables come from the recipe and the run directory alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from troupe.files import JsonLines, keep_lines
from troupe.report.tracker_tables import (
    NewLines,
    answer_tables,
    evaluation_metrics,
    evaluation_tables,
    labels,
    model_name,
    rewards_of,
    rollout_table,
)

SCRATCH = {"type": "scratch", "hidden_size": 64, "num_layers": 2}


def test_a_run_left_at_a_name_that_says_nothing_is_called_method_model_data() -> None:
    values = {
        "run": {"name": "sft", "directory": "runs"},
        "model": {"type": "pretrained", "path": "Qwen/Qwen2.5-0.5B"},
        "data": {"type": "docstrings"},
    }
    found = labels(Path("runs/sft"), values, program="jobs/train_sft.py")
    assert (found.name, found.method, found.group) == ("sft_Qwen2.5-0.5B_docstrings", "sft", None)
    assert found.tags == ["sft", "Qwen2.5-0.5B", "docstrings"]


def test_a_run_with_a_name_of_its_own_keeps_it_and_a_pipeline_is_a_group() -> None:
    values = {
        "run": {"name": "warm", "directory": "runs/summaries"},
        "model": SCRATCH,
        "data": {"type": "jsonl", "path": "/data/tldr.jsonl"},
    }
    found = labels(Path("runs/summaries/warm"), values, program="train_dpo.py")
    assert (found.name, found.group, found.tags) == ("warm", "summaries", ["dpo", "scratch-64x2", "tldr"])


def test_an_evaluation_is_called_by_the_models_that_it_compares() -> None:
    values = {"models": {"sft": "runs/sft", "a b/ppo": "runs/ppo"}, "data": {"type": "docstrings"}}
    found = labels(Path("evaluation"), values, program="jobs/evaluate.py")
    assert found.name == "eval_sft+a-b-ppo_docstrings"


def test_a_benchmark_is_called_by_its_trained_model_and_those_beside_it() -> None:
    values = {"trained": "runs/warm", "models": {}, "endpoints": {"gpt-4o": {}}, "data": {"type": "word_problems"}}
    found = labels(Path("runs/warm/benchmark"), values, program="jobs/benchmark.py")
    assert found.name == "benchmark_warm+gpt-4o_word_problems"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen2.5-3B-Instruct"),
        ("runs/p/sft/checkpoints/best", "sft"),
        ("/models/small/", "small"),
        ("/", "/"),
    ],
)
def test_a_model_is_called_by_its_directory_and_a_checkpoint_by_its_run(path: str, name: str) -> None:
    assert model_name(path) == name


def test_lines_are_read_once_also_when_a_resumed_run_has_cut_the_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    new = NewLines(file)
    assert new.of_step(1) == []
    JsonLines(file).append({"step": 1, "n": 1}, {"step": 2, "n": 2})
    assert new.of_step(1) == [{"step": 1, "n": 1}]
    assert new.of_step(1) == []
    keep_lines(file, lambda line: line["step"] < 2)
    JsonLines(file).append({"step": 2, "n": 3}, {"step": 2, "n": 4})
    assert [line["n"] for line in new.of_step(2)] == [3, 4]


def test_answers_become_a_table_per_set_with_a_column_for_each_metric() -> None:
    line = {"step": 2, "sample_id": "a", "prompt": "p", "text": "t", "gold": None}
    tables = answer_tables([{**line, "set": "x", "metrics": {"f1": 0.5}}, {**line, "set": "x", "metrics": {"em": 1}}])
    assert tables["answers/x"].columns == ["sample", "prompt", "answer", "gold", "f1", "em"]
    assert tables["answers/x"].rows == [["a", "p", "t", None, 0.5, None], ["a", "p", "t", None, None, 1.0]]


def test_rewards_that_are_missing_are_in_the_table_but_not_in_the_histogram() -> None:
    branches = [{"text": "x", "score": 1.0}, {"text": "y", "score": None}]
    table = rollout_table([{"step": 3, "sample_id": "a", "prompt": "p", "branches": branches}])
    assert [row[-2:] for row in table.rows] == [["x", 1.0], ["y", None]]
    assert rewards_of(table) == [1.0]


def test_an_evaluation_becomes_a_row_per_model_and_per_pair_with_the_means() -> None:
    interval = {"mean": 0.4, "low": 0.3, "high": 0.5}
    measured = {
        "models": {"sft": {"rouge": interval}, "ppo": {"rouge": interval, "reward": {"mean": 1.5}}},
        "comparisons": {"ppo against sft": {"win_rate": interval, "pairs": 64}},
        "counts": {"samples": 64},
    }
    tables = evaluation_tables(measured)
    assert tables["evaluation/models"].columns == ["model", "rouge", "reward"]
    assert tables["evaluation/models"].rows == [["sft", 0.4, None], ["ppo", 0.4, 1.5]]
    assert tables["evaluation/comparisons"].rows == [["ppo against sft", 0.4, 64.0]]
    assert evaluation_metrics(measured)["evaluation/ppo against sft/win_rate"] == 0.4
    assert evaluation_tables({"models": {}}) == {}
