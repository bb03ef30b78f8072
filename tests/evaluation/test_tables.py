"""Tables and files of an evaluation: which table a number goes to, what an empty cell is, what reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from troupe.config.evaluation import BenchmarkConfig, EvaluateConfig
from troupe.evaluation.benchmark_results import describe_candidates, usage_table, with_unmeasured
from troupe.evaluation.collection import Usage, file_name, usage_of_rows
from troupe.evaluation.comparison import compare
from troupe.evaluation.evaluation_tables import (
    ResultTable,
    as_csv,
    as_markdown,
    cell,
    print_tables,
    result_tables,
    write_answers,
    write_metrics,
)
from troupe.evaluation.plan import Candidate, EvaluationPlan
from troupe.evaluation.program import counts_of, lead_of, output_directory
from troupe.evaluation.scores import AnswerRow
from troupe.files import read_json, read_lines
from troupe.records import Sample
from troupe.statistics import Estimate


def exactly(value: float) -> Estimate:
    return Estimate(mean=value, low=value - 0.5, high=value + 0.25)


# -- which table -------------------------------------------------------------------------------------------------------


def test_numbers_are_grouped_by_what_they_are_and_tables_without_numbers_are_left_out() -> None:
    models = {
        "a": {"rouge/rouge1": exactly(1), "accuracy": exactly(2), "reward": exactly(3)},
        "b": {"accuracy": exactly(4), "response_words": exactly(5), "rouge/rouge1/recall": exactly(6)},
    }
    tables = {table.title: table for table in result_tables(models, {})}
    assert list(tables) == ["ROUGE (F1)", "Reward", "Metrics"]
    assert tables["ROUGE (F1)"].columns == ["ROUGE-1"]
    assert tables["ROUGE (F1)"].rows == {"a": ["1.000 (0.500 .. 1.250)"], "b": ["–"]}
    # Recall and precision are in metrics.json, and no column of a table for people.
    assert tables["Metrics"].columns == ["accuracy", "response words"]
    assert tables["Metrics"].rows["a"] == ["2.000 (1.500 .. 2.250)", "–"]
    assert result_tables({}, {}) == []
    assert result_tables({"a": {}}, {}) == []


def test_a_comparison_is_a_row_with_the_shares_of_either_side() -> None:
    compared = compare([1.0, 0.0], [0.0, 0.0], words=[1, 1], reference_words=[2, 2], tie_margin=0.0)
    (table,) = result_tables({}, {"a against b": compared})
    row = dict(zip(table.columns, table.rows["a against b"], strict=True))
    # One win and one tie of two.
    assert [row[name].partition(" ")[0] for name in ("win", "tie", "loss")] == ["0.500", "0.500", "0.000"]
    assert row["win rate, ties half"].startswith("0.750")
    assert row["length ratio"].startswith("0.500")


def test_a_cell_is_a_mean_with_its_interval_or_a_dash() -> None:
    assert cell(Estimate(mean=0.12345, low=-1, high=10)) == "0.123 (-1.000 .. 10.000)"
    assert cell(None) == "–"


def test_markdown_has_a_head_and_a_row_for_each_model() -> None:
    table = ResultTable(title="T", columns=["x", "y"], rows={"a": ["1", "2"], "b": ["3", "–"]})
    assert as_markdown([table, table], lead="# Lead") == (
        "# Lead\n\n## T\n\n| model | x | y |\n| --- | ---: | ---: |\n| a | 1 | 2 |\n| b | 3 | – |\n\n"
        "## T\n\n| model | x | y |\n| --- | ---: | ---: |\n| a | 1 | 2 |\n| b | 3 | – |\n"
    )
    assert as_markdown([], lead="# Lead") == "# Lead\n"


def test_the_console_has_a_quantity_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables([ResultTable(title="Metrics", columns=["accuracy", "words"], rows={"a": ["1", "2"], "b": ["3", "4"]})])
    lines = [line for line in capsys.readouterr().out.splitlines() if "accuracy" in line or "words" in line]
    assert [line.replace("│", " ").split() for line in lines] == [["accuracy", "1", "3"], ["words", "2", "4"]]


# -- files -------------------------------------------------------------------------------------------------------------


def answer(sample: str, **metrics: float) -> AnswerRow:
    return AnswerRow(
        sample_id=sample, prompt='a,"b"\nc', reference="née", prediction="", finish_reason="stop", metrics=metrics
    )


def test_answers_are_written_as_lines_and_as_a_table(tmp_path: Path) -> None:
    rows = [answer("s/1", x=0.5), answer("s/2", y=1.0)]
    write_answers(tmp_path / "answers", "mine", rows)
    assert [line["metrics"] for line in read_lines(tmp_path / "answers" / "mine.jsonl")] == [{"x": 0.5}, {"y": 1.0}]
    assert (tmp_path / "answers" / "mine.csv").read_text() == as_csv(rows)
    head = as_csv(rows).splitlines()[0].split(",")
    assert head[-2:] == ["x", "y"]
    assert as_csv([]).splitlines() == [",".join(head[:-2])]


def test_metrics_json_holds_means_with_their_intervals(tmp_path: Path) -> None:
    compared = compare([1.0], [0.0], words=[1], reference_words=[0], tie_margin=0.0)
    write_metrics(
        tmp_path / "metrics.json",
        {"a": {"accuracy": exactly(1)}},
        {"a against b": compared},
        counts={"samples": 1},
        settings={"judge": "accuracy"},
    )
    found = read_json(tmp_path / "metrics.json")
    assert found["models"] == {"a": {"accuracy": {"mean": 1, "low": 0.5, "high": 1.25}}}
    assert found["comparisons"]["a against b"]["samples"] == 1
    assert "length_ratio" not in found["comparisons"]["a against b"]  # the others have no word
    assert (found["counts"], found["settings"]) == ({"samples": 1}, {"judge": "accuracy"})


@pytest.mark.parametrize(
    ("config", "directory"),
    [
        (EvaluateConfig(model="a/b"), "evaluation"),
        (EvaluateConfig(models={"a": "x", "b": "y"}), "evaluation"),
        (EvaluateConfig(model="a/b", output="/out"), "/out"),
        (BenchmarkConfig(trained="runs/x"), "runs/x/benchmark"),
        (BenchmarkConfig(trained="runs/x/checkpoints/best"), "runs/x/benchmark"),
        (BenchmarkConfig(base="a/b"), "benchmark"),
    ],
)
def test_results_go_into_the_run_that_they_are_of(config: EvaluateConfig | BenchmarkConfig, directory: str) -> None:
    assert output_directory(config) == Path(directory)


def test_of_one_run_the_results_go_into_its_directory(tmp_path: Path) -> None:
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    assert output_directory(EvaluateConfig(model=str(tmp_path / "mine"))) == tmp_path / "mine" / "evaluation"


def test_the_lead_says_how_many_answered_what_and_what_was_left_out() -> None:
    samples = [Sample(sample_id=f"s/{n}", prompt="?") for n in range(3)]
    plan = EvaluationPlan(samples=samples, too_long=2, candidates=[], repeats=1)
    lead = lead_of(EvaluateConfig(model="x", against="reference"), plan)
    assert lead.startswith("3 held-out samples of word_problems, one answer each, greedily, at most 40 tokens; means")
    assert "2 prompts were longer than 256 tokens and left out." in lead
    assert lead.endswith("Judge of the comparisons: accuracy, ties within 0.")
    several = EvaluationPlan(samples=samples, too_long=0, candidates=[], repeats=4)
    lead = lead_of(BenchmarkConfig(base="a/b", repeats=4, temperature=0.5), several)
    assert "4 answers each, at temperature 0.5, at most" in lead
    assert "left out" not in lead
    assert counts_of(plan, None) == {"samples": 3, "prompts_too_long": 2}


# -- what answers took -------------------------------------------------------------------------------------------------


def line(question: str, text: str | None, *, failed: int = 0, reason: str | None = None) -> dict:
    return {
        "question": question,
        "text": text,
        "calls": failed + (text is not None),
        "failed_calls": failed,
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "cost": 0.25,
        "reason": reason,
    }


def test_a_question_that_failed_once_and_came_the_next_time_is_answered_and_paid_for_twice() -> None:
    rows = [line("q1", "a"), line("q2", None, failed=2, reason="503"), line("q2", "b", failed=1)]
    usage = usage_of_rows(rows, wanted=2, max_missing=0.0)
    assert (usage.answered, usage.missing, usage.remark) == (2, 0, None)
    assert (usage.calls, usage.failed_calls) == (1 + 2 + 2, 3)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cost) == (30, 9, 0.75)


@pytest.mark.parametrize(
    ("answered", "max_missing", "remark"),
    [
        (9, 0.1, None),  # 1 of 10 may be missing
        (8, 0.1, "2 of 10 answers are missing: refused"),
        (9, 0.0, "1 of 10 answers are missing: refused"),
        (0, 1.0, "10 of 10 answers are missing: refused"),  # of a model that said nothing there is nothing to measure
    ],
)
def test_too_many_missing_answers_have_a_remark(answered: int, max_missing: float, remark: str | None) -> None:
    rows = [line(f"q{n}", "a") for n in range(answered)]
    rows += [line(f"q{n}", None, failed=1, reason="refused") for n in range(answered, 10)]
    assert usage_of_rows(rows, wanted=10, max_missing=max_missing).remark == remark


def test_without_a_reason_the_remark_is_the_count() -> None:
    assert usage_of_rows([], wanted=3, max_missing=0.5).remark == "3 of 3 answers are missing"


def test_a_table_says_what_answers_took_and_a_model_that_was_not_measured_keeps_its_row() -> None:
    usage = {
        "here": Usage(wanted=4, answered=4, source="answered here"),
        "gpt": Usage(
            wanted=4, answered=1, calls=9, failed_calls=8, prompt_tokens=40, completion_tokens=3, remark="why"
        ),
        "paid": Usage(wanted=4, answered=4, calls=4, cost=0.5, prompt_tokens=1, completion_tokens=1),
    }
    table = usage_table(usage)
    rows = {name: dict(zip(table.columns, cells, strict=True)) for name, cells in table.rows.items()}
    assert rows["here"]["failed calls"] == rows["here"]["cost"] == "–"
    assert (rows["gpt"]["answers"], rows["gpt"]["failed calls"], rows["gpt"]["remark"]) == ("1 of 4", "8 of 9", "why")
    assert rows["paid"]["cost"] == "0.5000"
    measured = ResultTable(title="Metrics", columns=["accuracy", "words"], rows={"here": ["1", "2"]})
    assert with_unmeasured(measured, usage).rows == {"here": ["1", "2"], "gpt": ["missing (3 of 4)", "–"]}
    assert measured.rows == {"here": ["1", "2"]}


def test_candidates_are_described_with_what_they_took() -> None:
    usage = {"run@3": Usage(wanted=2, answered=2, source="the run's own answers")}
    (found,) = describe_candidates([Candidate(name="run@3", kind="trained", step=3)], usage)
    assert (found["name"], found["kind"], found["step"], found["missing"]) == ("run@3", "trained", 3, 0)
    assert json.loads(json.dumps(found)) == found


def test_the_first_repeat_has_the_models_own_file() -> None:
    assert [file_name("a", repeat) for repeat in range(3)] == ["a", "a.1", "a.2"]
