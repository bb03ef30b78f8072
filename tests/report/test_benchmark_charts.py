"""The two charts of a benchmark: what is drawn lies where its number says, ties are dotted, gains have their sign."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from troupe.report.benchmark_charts import ChartData, first_and_last, over_steps
from troupe.report.report_benchmark import chart_of
from troupe.statistics import Estimate

SVG = "{http://www.w3.org/2000/svg}"


def near(mean: float, reach: float = 0.05) -> Estimate:
    return Estimate(mean=mean, low=mean - reach, high=mean + reach)


def data(points: list[tuple[int, float]], others: dict[str, float], metric: str = "accuracy") -> ChartData:
    return ChartData(
        metric=metric,
        trained="ours",
        points=[(step, near(mean)) for step, mean in points],
        others={name: near(mean) for name, mean in others.items()},
    )


SUMMARISER = data([(0, 0.37), (37, 0.58), (69, 0.70)], {"gpt-4o": 0.38, "gpt-4.1": 0.45, "tied": 0.45, "sonnet": 0.57})


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def words(root: ElementTree.Element) -> list[str]:
    return [str(text.text) for text in root.iter(f"{SVG}text")]


def by_id(root: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(element for element in root.iter() if element.get("id") == name)


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    """The points of the first path in a part of the drawing."""
    path = next(element.iter(f"{SVG}path")).get("d", "")
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ?([-\d.]+) ([-\d.]+)", path)]


def test_the_trained_model_and_the_levels_are_at_their_values() -> None:
    root = drawn(over_steps(SUMMARISER))
    first, middle, last = points(by_id(root, "trained"))
    assert (middle[0] - first[0]) / (last[0] - first[0]) == pytest.approx(37 / 69, abs=0.001)
    per_share = (first[1] - last[1]) / (0.70 - 0.37)
    for place, estimate in enumerate(SUMMARISER.others.values()):
        begin, end = points(by_id(root, f"level-{place}"))
        assert begin[1] == end[1] == pytest.approx(first[1] - per_share * (estimate.mean - 0.37), abs=0.1)
    band = [y for _, y in points(by_id(root, "band"))]
    assert max(band) - min(band) == pytest.approx(per_share * (0.75 - 0.32), abs=0.1)


def test_ties_are_dotted_each_in_the_gaps_of_the_one_before() -> None:
    root = drawn(over_steps(SUMMARISER))
    styles = [next(by_id(root, f"level-{place}").iter(f"{SVG}path")).get("style", "") for place in range(4)]
    dashes = [re.search(r"stroke-dasharray: ([\d.,]+)", style).group(1) for style in styles]
    offsets = [re.search(r"stroke-dashoffset: ([\d.]+)", style).group(1) for style in styles]
    assert dashes[0] == dashes[3] != dashes[1] == dashes[2]
    assert offsets[1] != offsets[2]  # or one would hide the other


def test_the_legend_has_the_last_values_from_the_highest_down() -> None:
    texts = words(drawn(over_steps(SUMMARISER)))
    assert texts[-5:] == ["ours 70%", "sonnet 57%", "gpt-4.1 45%", "tied 45%", "gpt-4o 38%"]
    assert "accuracy over the training steps, validation split" in texts


def test_what_training_added_is_hatched_and_named() -> None:
    root = drawn(first_and_last(SUMMARISER))
    texts = words(root)
    assert "RL +33 %" in texts
    heights = [y for _, y in points(by_id(root, "gain"))]
    marks = {text.text: float(re.search(r"translate\([\d.]+ ([\d.]+)\)|y=?", text.get("transform", "") + "y").group(1) or text.get("y"))
             for text in root.iter(f"{SVG}text") if str(text.text).endswith("0%")}  # fmt: skip
    assert max(heights) - min(heights) == pytest.approx((marks["0%"] - marks["40%"]) / 0.4 * 0.33, abs=0.3)
    assert [text for text in texts if text in [*SUMMARISER.others, "ours"]] == [
        "gpt-4o",
        "gpt-4.1",
        "tied",
        "sonnet",
        "ours",
    ]


def test_a_loss_has_its_sign() -> None:
    assert "RL −20 %" in first_and_last(data([(0, 0.5), (9, 0.3)], {}))
    assert "RL −2" in first_and_last(data([(0, -1.0), (9, -3.0)], {"other": -2.0}))


@pytest.mark.parametrize(("largest", "percent"), [(0.4, True), (1.01, True), (1.02, False), (5.0, False)])
def test_the_scale_is_percent_up_to_a_hundred(largest: float, percent: bool) -> None:
    chart = data([(0, 0.1), (5, largest)], {"other": 0.2})
    assert chart.percent is percent
    assert ("%</text>" in over_steps(chart)) is percent


def test_a_number_below_zero_is_no_share() -> None:
    assert not data([(0, -0.5), (5, 0.5)], {}).percent


@pytest.mark.parametrize(
    "chart",
    [
        data([(3, 0.5)], {}),
        data([(0, -2.0), (8, -1.0)], {"a": -3.5}, metric="reward"),
        data([(0, 0.0), (1, 0.0)], {"a": 0.0}),
        data([(0, 2.0), (100, 4.6)], {f"model {n} <&> $x^2$": 1.0 + n / 3 for n in range(9)}, metric="judge_qa"),
    ],
)
def test_any_numbers_and_names_are_a_file_that_says_them_and_is_the_same_again(chart: ChartData) -> None:
    for draw in (over_steps, first_and_last):
        texts = words(drawn(draw(chart)))
        assert all(any(name in text for text in texts) for name in (*chart.others, "ours"))
        assert draw(chart) == draw(chart)


def test_without_a_trained_model_there_are_bars_alone_and_without_models_nothing() -> None:
    others = ChartData(metric="m", trained="", points=[], others={"a": near(0.5)})
    assert over_steps(others) == ""
    assert "RL" not in first_and_last(others)
    assert first_and_last(ChartData(metric="m", trained="", points=[], others={})) == ""


def test_a_chart_is_made_again_from_its_json() -> None:
    again = chart_of(SUMMARISER.as_dict())
    assert over_steps(again) == over_steps(SUMMARISER)
    assert first_and_last(again) == first_and_last(SUMMARISER)
