"""The two charts of a benchmark: what is drawn lies where its number says, ties are dotted, gains have their sign."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from troupe.report.benchmark_charts import HEIGHT, WIDTH, ChartData, first_and_last, over_steps, standalone
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
    return ElementTree.fromstring(standalone(svg))


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if name in (element.get("class") or "").split()]


def heights(root: ElementTree.Element) -> dict[str, float]:
    """Text of the value axis -> its height in the picture."""
    grid = of_class(root, "grid")[0]
    return {str(text.text): float(text.get("y", 0)) - 3.5 for text in grid.iter(f"{SVG}text")}


def test_levels_lie_at_their_values_dashed_and_tied_ones_dotted() -> None:
    root = drawn(over_steps(SUMMARISER))
    marks = heights(root)
    per_share = (marks["0%"] - marks["40%"]) / 0.4
    levels = of_class(root, "level")
    assert [line[0].text for line in levels] == [
        "gpt-4o: 38% (33% to 43%)",
        "gpt-4.1: 45% (40% to 50%)",
        "tied: 45% (40% to 50%)",
        "sonnet: 57% (52% to 62%)",
    ]
    for line, mean in zip(levels, SUMMARISER.others.values(), strict=True):
        assert float(line.get("y1", 0)) == pytest.approx(marks["0%"] - per_share * mean.mean, abs=0.2)
    dashes = [line.get("stroke-dasharray") for line in levels]
    assert dashes[0] == dashes[3] == "7 5"
    assert dashes[1] == dashes[2] != "7 5"
    assert levels[1].get("stroke-dashoffset") != levels[2].get("stroke-dashoffset")  # or one would hide the other


def test_the_trained_model_is_a_line_with_a_marker_for_each_step_in_its_band() -> None:
    root = drawn(over_steps(SUMMARISER))
    (line,) = of_class(root, "trained")
    markers = list(line.iter(f"{SVG}circle"))
    assert [marker[0].text for marker in markers] == [
        "ours, step 0: 37% (32% to 42%)",
        "ours, step 37: 58% (53% to 63%)",
        "ours, step 69: 70% (65% to 75%)",
    ]
    across = [float(marker.get("cx", 0)) for marker in markers]
    assert (across[1] - across[0]) / (across[2] - across[0]) == pytest.approx(37 / 69, abs=0.01)
    (band,) = of_class(root, "band")
    assert len(re.findall(r"[ML]", band.get("d", ""))) == 6  # up along three intervals and back
    assert "validation split" in root.get("aria-label", "")


def test_what_training_added_is_hatched_and_named() -> None:
    root = drawn(first_and_last(SUMMARISER))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert "RL +33 %" in words
    (gain,) = of_class(root, "gain")
    marks = heights(root)
    assert float(gain.get("height", 0)) == pytest.approx((marks["0%"] - marks["40%"]) / 0.4 * 0.33, abs=0.3)
    assert gain[0].text == "ours, last step: 70% (65% to 75%)"
    names = [text.text for text in root.iter(f"{SVG}text") if text.find(f"{SVG}title") is not None]
    assert names == ["gpt-4o", "gpt-4.1", "tied", "sonnet", "ours"]  # by their last value


def test_a_loss_has_its_sign() -> None:
    assert "RL −20 %" in first_and_last(data([(0, 0.5), (9, 0.3)], {}))
    assert "RL −2" in first_and_last(data([(0, -1.0), (9, -3.0)], {"other": -2.0}))


@pytest.mark.parametrize(("largest", "percent"), [(0.4, True), (1.01, True), (1.02, False), (5.0, False)])
def test_the_scale_is_percent_up_to_a_hundred(largest: float, percent: bool) -> None:
    chart = data([(0, 0.1), (5, largest)], {"other": 0.2})
    assert chart.percent is percent
    assert ("%</text>" in over_steps(chart)) is percent
    assert ("RL +30 %" in first_and_last(data([(0, 0.1), (5, 0.4)], {}))) is True


def test_a_number_below_zero_is_no_share() -> None:
    assert not data([(0, -0.5), (5, 0.5)], {}).percent


@pytest.mark.parametrize(
    "chart",
    [
        SUMMARISER,
        data([(3, 0.5)], {}),
        data([(0, -2.0), (8, -1.0)], {"a": -3.5}, metric="reward"),
        data([(0, 0.0), (1, 0.0)], {"a": 0.0}),
        data([(0, 2.0), (100, 4.6)], {f"model {n} <&>": 1.0 + n / 3 for n in range(9)}, metric="judge_qa"),
    ],
)
def test_everything_that_is_drawn_lies_in_the_picture(chart: ChartData) -> None:
    for svg in (over_steps(chart), first_and_last(chart)):
        root = drawn(svg)
        assert "var(--" not in standalone(svg)  # viewers without CSS variables show it too
        for element in root.iter():
            for name, most in (
                ("x", WIDTH),
                ("x1", WIDTH),
                ("cx", WIDTH),
                ("y", HEIGHT),
                ("y1", HEIGHT),
                ("cy", HEIGHT),
            ):
                if element.get(name) is not None:
                    assert 0 <= float(element.get(name, 0)) <= most


def test_without_a_trained_model_there_are_bars_alone_and_without_anybody_nothing() -> None:
    others = ChartData(metric="m", trained="", points=[], others={"a": near(0.5)})
    assert over_steps(others) == ""
    assert standalone(over_steps(others)) == ""
    assert "RL" not in first_and_last(others)
    assert first_and_last(ChartData(metric="m", trained="", points=[], others={})) == ""


def test_a_chart_is_made_again_from_its_json() -> None:
    again = chart_of(SUMMARISER.as_dict())
    assert over_steps(again) == over_steps(SUMMARISER)
    assert first_and_last(again) == first_and_last(SUMMARISER)
