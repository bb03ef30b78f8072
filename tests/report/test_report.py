"""The page says what the files say, to everybody, without a network."""

from __future__ import annotations

import html
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.fake_run import fake_run
from tests.report.pages import charts_of, curve, data_of, labels
from troupe.errors import DataError
from troupe.files import JsonLines, read_lines
from troupe.jobs.report import main
from troupe.report.charts import short
from troupe.report.report import build_comparison, build_report
from troupe.statistics import estimate_difference


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs"), name="first", steps=30)


@pytest.fixture(scope="module")
def page(run_directory: Path) -> str:
    return (run_directory / "report.html").read_text()


def test_the_curves_are_the_numbers_of_metrics_jsonl(run_directory: Path, page: str) -> None:
    lines = read_lines(run_directory / "metrics.jsonl")
    assert len(lines) == 31
    for name in {name for line in lines for name in line} - {"step", "at", "wall_s"}:
        assert curve(page, name) == [[line["step"], line[name]] for line in lines if name in line]


def test_the_x_axes_are_steps_tokens_and_seconds(run_directory: Path, page: str) -> None:
    lines = read_lines(run_directory / "metrics.jsonl")
    axes = data_of(page)["runs"][0]["x"]
    assert axes["step"] == list(range(31))
    assert axes["time"] == [line["wall_s"] for line in lines]
    assert axes["tokens"][-1] == sum(line.get("rollout/tokens", 0) for line in lines)


def test_a_nan_of_the_run_is_a_gap_in_its_curve(tmp_path: Path) -> None:
    page = (fake_run(tmp_path, steps=34) / "report.html").read_text()
    assert [33, None] in curve(page, "policy/grad_norm")


def test_a_constant_metric_and_one_that_repeats_another_are_a_line_and_no_chart(page: str) -> None:
    drawn = {metric for chart in charts_of(page).values() for metric in chart["metrics"]}
    assert "reward/mean" in drawn
    assert not {"rollout/lag", "reward/math_answer"} & drawn
    assert "<code>rollout/lag</code> 0" in page
    assert "<code>reward/math_answer</code> equals reward/mean" in page


def test_every_group_of_rollouts_and_every_answer_is_in_the_page(run_directory: Path, page: str) -> None:
    groups = data_of(page)["groups"]
    sampled = [group for group in groups if group["set"] == ""]
    lines = read_lines(run_directory / "rollouts.jsonl")
    assert len(lines) == 60
    assert [
        {"set": "", **{key: line[key] for key in ("step", "sample_id", "prompt", "gold", "branches")}} for line in lines
    ] == sampled
    held_out = read_lines(run_directory / "answers.jsonl")
    assert [
        (group["step"], group["branches"][0]["text"], group["branches"][0]["score"]) for group in groups if group["set"]
    ] == [(row["step"], row["text"], row["metrics"]["accuracy"]) for row in held_out]


def test_a_page_has_at_most_20_mb_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    directory = fake_run(tmp_path, steps=2)
    group = {"sample_id": "a", "prompt": "<&>'" * 100, "gold": None,
             "branches": [{"text": "<\u2028é" * 2000, "score": 1.0, "parts": {}}] * 4}  # fmt: skip
    JsonLines(directory / "rollouts.jsonl").append(*({"step": step, **group} for step in range(3, 900)))
    page = build_report(directory)
    assert 5_000_000 < page.stat().st_size < 20_000_000
    groups = [group for group in data_of(page.read_text())["groups"] if group["set"] == ""]
    steps = [group["step"] for group in groups]
    assert steps[-1] == 899
    assert max(after - before for before, after in itertools.pairwise(steps)) < 40
    assert 'data-in-files="949"' in page.read_text()  # 4 + 897 groups and 48 answers


def test_a_long_run_keeps_its_lines_at_equal_distances_and_the_last_one(tmp_path: Path) -> None:
    directory = fake_run(tmp_path, steps=2)
    names = [f"m/{number}" for number in range(40)]
    JsonLines(directory / "metrics.jsonl").append(
        *({"step": step, "wall_s": 1.0, **dict.fromkeys(names, step / 7)} for step in range(3, 9_000))
    )
    page = build_report(directory)
    assert page.stat().st_size < 20_000_000
    points = curve(page.read_text(), "m/3")
    assert points[-1] == [8_999, 8_999 / 7]
    assert {after[0] - before[0] for before, after in itertools.pairwise(points)} == {2}


@pytest.mark.parametrize(
    "title",
    [
        "Accuracy, held out", "KL to the reference", "Entropy", "Clipped tokens", "Gradient norm", "Response length",
        "Truncated answers", "Trainer and generator", "Weight sync", "Seconds of a step", "Tokens per second",
    ],
)  # fmt: skip
def test_every_quantity_a_person_looks_for_has_a_chart(page: str, title: str) -> None:
    assert title in charts_of(page)


def test_the_bound_of_the_consistency_gate_is_drawn(page: str) -> None:
    chart = charts_of(page)["Trainer and generator"]
    assert chart["bound"] == 1e-3
    assert labels(chart) == ["", "rounding alone"]  # what the bound follows from, beside the gap


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
    assert tags.count("script") == 3  # the data, uPlot, the page's own
    assert "img" not in tags.names
    assert not any(name.startswith("on") for name in tags.attributes)
    assert html.escape(attack).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page
    assert data_of(page)["groups"][-1]["branches"][0]["text"] == attack


def test_text_that_would_end_a_script_is_escaped_in_its_json(tmp_path: Path) -> None:
    directory = fake_run(tmp_path, steps=2)
    text = "</script><!--<script>\u2028\u2029&'\x1b[31m"
    JsonLines(directory / "rollouts.jsonl").append({"step": 2, "prompt": "p", "branches": [{"text": text}]})
    with open(directory / "rollouts.jsonl", "a") as file:
        file.write('{"step": 2, "prompt": "\\ud800 alone", "branches": []}\n')
    page = build_report(directory).read_text(encoding="utf-8")
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert not set(data) & set("<>&'\u2028\u2029")
    assert [group["prompt"] for group in data_of(page)["groups"]][-2:] == ["p", "? alone"]


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
    page = re.sub(r"/\*!.*?\*/", "", page)  # the licence of uPlot names its address
    assert re.findall(r'(?:src|href)="(?!data:,)[^#"]|(?<!xmlns=")https?://|url\(|@import', page) == []


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
    assert labels(charts_of(page)["Reward"]) == ["first", "second"]
    assert curve(page, "reward/mean", run=1)[0][0] == 1
    assert "<td>seed</td><td>0</td><td>3</td>" in page
    assert page.index("Settings that differ</h2>") < page.index("Learning</h2>")
    assert build_comparison([run_directory, other], tmp_path / "again.html").read_text() == page


def test_a_comparison_has_the_paired_interval_over_the_same_samples(run_directory: Path, tmp_path: Path) -> None:
    other = fake_run(tmp_path, name="other", steps=10, seed=3)
    last = [
        {
            row["sample_id"]: row["metrics"]["accuracy"]
            for row in read_lines(run / "answers.jsonl")
            if row["step"] == step
        }
        for run, step in ((run_directory, 30), (other, 10))
    ]
    expected = estimate_difference([last[1][key] for key in last[0]], list(last[0].values()))
    page = build_comparison([run_directory, other], tmp_path / "compare.html").read_text()
    assert f"{expected.mean:+.3f} ({expected.low:+.3f} to {expected.high:+.3f}; 95 %, 24 samples)".replace(
        "+", "&#43;"
    ) in page.replace("+", "&#43;")


def test_a_held_out_tile_has_the_interval_of_its_change_and_one_evaluation_no_arrow(tmp_path: Path, page: str) -> None:
    tile = page.partition("<p>Accuracy, held out</p>")[2].partition("</div>")[0]
    assert "→" in tile
    assert "95 %, 24 samples" in tile
    directory = fake_run(tmp_path, steps=2)
    (directory / "metrics.jsonl").write_text(
        '{"step": 0, "eval/heldout/accuracy": 0}\n{"step": 1, "reward/mean": 0.5}\n'
    )
    tile = build_report(directory).read_text().partition("<p>Accuracy, held out</p>")[2].partition("</div>")[0]
    assert "→" not in tile
    assert "step 0 alone" in tile


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (1.0, "1"), (0.12345, "0.123"), (21.567, "21.57"), (1993.6, "1994"), (11_345, "11.3k"),
     (2_500_000, "2.5M"), (3.2e-6, "3.2e-6"), (1e-5, "1e-5"), (-0.5, "-0.500")],
)  # fmt: skip
def test_a_number_is_shown_with_the_digits_that_matter(value: float | None, text: str) -> None:
    assert short(value) == text


def test_a_secret_is_masked_however_the_page_would_escape_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = fake_run(tmp_path, steps=2)
    secret = "sécret\"<b>&'12345"
    line = {"step": 0, "set": "a", "sample_id": f"id {secret}", "prompt": secret, "text": secret, "metrics": {}}
    with open(directory / "answers.jsonl", "a") as file:  # written before the variable was known
        file.write(json.dumps(line) + "\n")
    monkeypatch.setenv("MY_API_KEY", secret)
    page = build_report(directory).read_text()
    assert data_of(page)["groups"][48]["prompt"] == "$MY_API_KEY"
    assert "12345" not in page
    assert "id $MY_API_KEY" in page
