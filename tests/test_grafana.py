"""The dashboard asks for nothing that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from troupe.actors.meters import METERS, PREFIX, legal

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "grafana" / "troupe.json"
NAME = re.compile(r"ray_(troupe_[a-z0-9_]+)")
PATTERN = re.compile(r'__name__=~"ray_([^"]+)"')


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def exported_live() -> set[str]:
    """The names that Prometheus has of `METERS`, without Ray's prefix."""
    endings = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {PREFIX + name + ending for name, (kind, _) in METERS.items() for ending in endings[kind]}


def unknown_names(metrics: set[str]) -> list[str]:
    """What the dashboard asks for and neither a worker nor a run that logs `metrics` shows."""
    known = exported_live() | {legal(name) for name in metrics}
    patterns = [found for text in expressions() for found in PATTERN.findall(text)]
    names = [found for text in expressions() for found in NAME.findall(PATTERN.sub("", text))]
    unmatched = [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in known)]
    return sorted({*unmatched, *(name for name in names if name not in known)})


def test_metric_names_become_legal_ones() -> None:
    assert legal("reward/mean") == "troupe_reward_mean"
    assert legal("eval/gsm-8k/accuracy@4") == "troupe_eval_gsm_8k_accuracy_4"


def test_every_live_meter_is_on_the_dashboard_and_in_the_docs() -> None:
    asked = " ".join(expressions())
    told = (ROOT / "docs" / "watching.md").read_text()
    for name in METERS:
        assert PREFIX + name in asked
        assert name in told or name.removeprefix("rewarder").removeprefix("trainer") in told


def test_panels_have_their_own_places_and_numbers() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(x < 24 for x, _ in cells)
