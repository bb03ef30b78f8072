"""Colours of all pages by WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for lines, on each background and in both schemes."""

from __future__ import annotations

import re

import pytest

from troupe.report.benchmark_charts import LEVELS, OTHER, OURS
from troupe.style import STYLE

LIGHT, DARK = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in STYLE.split("@media (prefers-color-scheme")[:2])
BACKGROUNDS = ("page", "card", "tint")
TEXTS = ("ink", "soft", "good", "bad", "warn", "info")
LINES = tuple(f"c{number}" for number in range(9))


def luminance(color: str) -> float:
    """WCAG's relative luminance: linear light of red, green and blue, weighted as the eye does."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_extremes_are_those_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known grey that just fails
    assert contrast("#123456", "#123456") == 1


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_text_and_lines_can_be_told_from_what_they_stand_on(scheme: dict[str, str], background: str) -> None:
    assert {*BACKGROUNDS, *TEXTS, *LINES} <= set(scheme)
    faint = {name: contrast(scheme[name], scheme[background]) for name in TEXTS}
    assert {name: found for name, found in faint.items() if found < 4.5} == {}
    faint = {name: contrast(scheme[name], scheme[background]) for name in LINES}
    assert {name: found for name, found in faint.items() if found < 3} == {}


def test_what_a_benchmark_draws_can_be_told_from_white() -> None:
    assert {color for color in (OURS, OTHER, *LEVELS) if contrast(color, "#ffffff") < 3} == set()
