"""The page says what the files say, to everybody, without a network."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.fake_run import fake_run
from troupe.errors import DataError
from troupe.files import JsonLines, read_lines
from troupe.jobs.report import main
from troupe.report.charts import Series, line_chart, short, thin, ticks
from troupe.report.report import build_comparison, build_report


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs"), name="first", steps=30)


@pytest.fixture(scope="module")
def page(run_directory: Path) -> str:
    return (run_directory / "report.html").read_text()


def curve(page: str, title: str) -> list[list[float]]:
    """[step, value] of the first curve of the chart with that title."""
    figure = next(part for part in page.split('<figure class="chart')[1:] if f">{title}</h3>" in part)
    data = json.loads(html.unescape(re.search(r"data-chart='(.*?)'", figure).group(1)))
    return [point[:2] for point in data["series"][0]]


def test_the_curves_are_the_numbers_of_metrics_jsonl(run_directory: Path, page: str) -> None:
    lines = [line for line in read_lines(run_directory / "metrics.jsonl") if "reward/mean" in line]
    assert len(lines) == 30
    # Values are written with five digits.
    assert curve(page, "Reward") == [[line["step"], pytest.approx(line["reward/mean"], rel=1e-4)] for line in lines]


def test_a_nan_of_the_run_is_a_gap_in_its_curve() -> None:
    points = [(1, 0.5), (2, None), (3, 0.7)]
    drawn = line_chart([Series(label="a", points=points)], title="t", name="t")
    assert re.search(r'<path d="([^"]*)"', drawn).group(1).count("M") == 2


@pytest.mark.parametrize(
    "title",
    [
        "Accuracy, held out", "KL to the reference", "Entropy", "Clipped tokens", "Gradient norm", "Response length",
        "Truncated answers", "Lag", "Trainer and generator", "Weight sync", "Seconds of a step", "Tokens per second",
    ],
)  # fmt: skip
def test_every_quantity_a_person_looks_for_has_a_chart(page: str, title: str) -> None:
    assert f">{title}</h3>" in page


def test_the_bound_of_the_consistency_gate_is_drawn(page: str) -> None:
    assert "bound 0.001" in page
    assert "rounding alone" in page  # what the bound follows from, beside the gap


def test_before_and_after_are_the_same_samples_at_the_first_and_last_evaluation(run_directory: Path, page: str) -> None:
    answers = read_lines(run_directory / "answers.jsonl")
    sample_id = answers[0]["sample_id"]
    first, last = (
        next(row["text"] for row in answers if (row["sample_id"], row["step"]) == (sample_id, step)) for step in (0, 30)
    )
    card = next(part for part in page.split("<article")[1:] if f"<span>{sample_id}</span>" in part)
    assert card.index("step 0") < card.index(html.escape(first)) < card.index("step 30") <= card.rindex(last)


def test_what_a_model_says_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'"
    directory = fake_run(tmp_path, steps=2)
    JsonLines(directory / "answers.jsonl").append(
        {"step": 0, "set": attack, "sample_id": attack, "prompt": attack, "gold": attack, "text": attack,
         "metrics": {attack: 1.0, "note": attack}}
    )  # fmt: skip
    JsonLines(directory / "rollouts.jsonl").append(
        {"step": 2, "sample_id": attack, "prompt": attack,
         "branches": [{"text": attack, "score": 1.0, "parts": {attack: 0.5}, "finish_reason": attack}]}
    )  # fmt: skip
    JsonLines(directory / "events.jsonl").append({"at": attack, "kind": attack, "step": attack, "error": attack})
    JsonLines(directory / "metrics.jsonl").append({"step": 3, f"reward/{attack}": 1.0, f"time/{attack}_s": 1.0})
    page = build_report(directory).read_text()
    tags = Tags(page)
    assert tags.count("script") == 1  # the page's own
    assert "img" not in tags.names
    assert not any(name.startswith("on") for name in tags.attributes)
    assert html.escape(attack) in page


class Tags(HTMLParser):
    """The tags and attribute names a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.names.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def count(self, tag: str) -> int:
        return self.names.count(tag)


def test_the_page_refers_to_nothing_outside(page: str) -> None:
    assert re.findall(r'(?:src|href)="?(?!data:,)[^#"]|https?://|url\(|@import', page) == []


def test_a_report_can_be_built_of_a_run_that_was_killed_or_lacks_its_files(tmp_path: Path) -> None:
    directory = fake_run(tmp_path, steps=2)
    for file in directory.iterdir():
        if file.name != "config.yaml":
            file.unlink()
    assert "<h1>quickstart</h1>" in build_report(directory).read_text()
    (directory / "metrics.jsonl").write_text('{"step": 0, "reward/mean": null}\n{"step": 1, "rew')
    assert build_report(directory).is_file()


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run directory: it has no config"):
        main([str(tmp_path)])


def test_several_runs_are_laid_over_each_other(run_directory: Path, tmp_path: Path) -> None:
    other = fake_run(tmp_path, name="second", steps=10, seed=3)
    page = main([str(run_directory), str(other), "--output", str(tmp_path / "compare.html")]).read_text()
    assert page.count("<figure") > 10
    assert "<td>seed</td><td>0</td><td>3</td>" in page
    assert build_comparison([run_directory, other], tmp_path / "again.html").read_text() == page


def test_a_long_curve_is_thinned_to_means_of_neighbours() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thinned = thin(points, most=250)
    assert len(thinned) == 250
    assert {value for _, value in thinned} == {0.5}


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 0.071, [0, 0.02, 0.04, 0.06]), (1850, 2130, [1900, 2000, 2100])],
)
def test_axis_marks_are_round_and_few(low: float, high: float, marks: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(marks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (1.0, "1"), (0.12345, "0.123"), (21.567, "21.57"), (1993.6, "1994"), (11_345, "11.3k"),
     (2_500_000, "2.5M"), (3.2e-6, "3.2e-6"), (1e-5, "1e-5"), (-0.5, "-0.500")],
)  # fmt: skip
def test_a_number_is_shown_with_the_digits_that_matter(value: float | None, text: str) -> None:
    assert short(value) == text
