"""The timeline of a step in the report: a strip for the driver and for each worker, from the trace of timeline.json.

A gap is waiting. What a worker waits for is what the others do at that moment, and what the driver waits for is the
phase of its strip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from troupe.report.charts import short
from troupe.report.report_curves import PHASE_COLORS
from troupe.report.report_page import escape

MOST_SHOWN = 2
WIDTH, HEIGHT = 1000, 22
COLORS = {
    **PHASE_COLORS,
    "generate": PHASE_COLORS["rollout"],
    "receive weights": PHASE_COLORS["publish"],
    "read": PHASE_COLORS["reference"],
    "logprobs": PHASE_COLORS["reference"],
    "judgements": PHASE_COLORS["reward"],
    "score": PHASE_COLORS["reward"],
    "probe": PHASE_COLORS["evaluate"],
    "save": PHASE_COLORS["checkpoint"],
}
"""What belongs together has one colour: a phase of the driver, and the work that it waits for."""
WITHIN = {"optimizer step": "update"}
"""Parts of other work: drawn as lines within it."""


def timeline_strips(trace: Mapping[str, Any]) -> str:
    """The latest steps of the trace as strips; empty where there is none."""
    events = trace.get("traceEvents", [])
    steps = sorted({event["step"] for event in events if "step" in event})
    if not steps:
        return ""
    lead = (
        "Who worked when; gaps are waiting. The height of a bar is what is in flight, where that is counted. Point at a bar for its seconds. "
        "timeline.json in the run directory opens in ui.perfetto.dev and chrome://tracing."
    )
    strips = "".join(
        _step([event for event in events if event.get("step") == step], trace, step) for step in steps[-MOST_SHOWN:]
    )
    return f'<p class="lead" style="margin:-8px 0 14px">{lead}</p>{strips}'


def _step(events: Sequence[Mapping[str, Any]], trace: Mapping[str, Any], step: int) -> str:
    spans = [event for event in events if event["ph"] == "X"]
    whole = next(event for event in spans if event["name"] == f"step {step}")
    rows, names = list[str](), dict[str, list[str]]()
    for pid, track in enumerate(trace.get("tracks", [])):
        mine = [span for span in spans if span["pid"] == pid and span is not whole]
        levels = [event for event in events if event["ph"] == "C" and event["pid"] == pid]
        if mine:
            for name in dict.fromkeys(_family(span["name"]) for span in mine):
                alike = names.setdefault(_color(name), [])
                alike += [name] if name not in alike else []
            rows.append(_row(track, mine, levels, whole))
    keys = "".join(
        f'<span class="key"><i style="background:{color}"></i>{escape(", ".join(alike))}</span>'
        for color, alike in names.items()
    )
    seconds = f"{short(whole['dur'] / 1e6)} s"
    return (
        f'<figure class="chart strips"><figcaption><h3>Step {step}</h3><em>{seconds}</em><div class="keys">{keys}</div></figcaption>'
        f'{"".join(rows)}<div class="strip axis"><span></span><p><span>0</span><span>{seconds}</span></p><b>busy</b></div></figure>'
    )


def _row(
    track: str, spans: Sequence[Mapping[str, Any]], levels: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]
) -> str:
    # The longest first, so that what lies within it is drawn over it.
    bars = "".join(_bar(span, levels, whole) for span in sorted(spans, key=lambda span: -span["dur"]))
    busy = _covered(spans) / max(whole["dur"], 1)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(track)}">{bars}</svg>'
    return f'<div class="strip"><span>{escape(track)}</span>{svg}<b>{busy:.0%}</b></div>'


def _bar(span: Mapping[str, Any], levels: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> str:
    def x(moment: float) -> float:
        return round((moment - whole["ts"]) / max(whole["dur"], 1) * WIDTH, 1)

    begin, end, name = span["ts"], span["ts"] + span["dur"], span["name"]
    title = f"<title>{escape(name)}: {short(span['dur'] / 1e6)} s, from {short((begin - whole['ts']) / 1e6)} s</title>"
    width = max(round(x(end) - x(begin), 1), 1)
    if name in WITHIN:
        return f'<rect class="within" x="{x(begin)}" y="5" width="{width}" height="{HEIGHT - 10}">{title}</rect>'
    counted = name in ("generate", "judgements", "score")
    inside = [event for event in levels if begin <= event["ts"] <= end] if counted else []
    rect = f'<rect x="{x(begin)}" y="2" width="{width}" height="{HEIGHT - 4}" fill="{_color(name)}"{" class=under" if inside else ""}>{title}</rect>'
    return rect + (_area(inside, _color(name), x, end) if inside else "")


def _area(levels: Sequence[Mapping[str, Any]], color: str, x: Any, end: float) -> str:
    """How many are in flight, as steps over the bar."""
    most = max(event["args"]["in flight"] for event in levels) or 1
    path, height = f"M{x(levels[0]['ts'])},{HEIGHT - 2}", 0.0
    for event in levels:
        at = x(event["ts"])
        path += f"L{at},{HEIGHT - 2 - height:.1f}"
        height = (HEIGHT - 4) * event["args"]["in flight"] / most
        path += f"L{at},{HEIGHT - 2 - height:.1f}"
    return f'<path d="{path}L{x(end)},{HEIGHT - 2 - height:.1f}L{x(end)},{HEIGHT - 2}Z" fill="{color}" pointer-events="none"/>'


def _covered(spans: Sequence[Mapping[str, Any]]) -> float:
    """Microseconds in which at least one of the spans goes on."""
    covered, until = 0.0, 0.0
    for span in sorted(spans, key=lambda span: span["ts"]):
        begin, end = max(span["ts"], until), span["ts"] + span["dur"]
        covered += max(end - begin, 0)
        until = max(until, end)
    return covered


def _family(name: str) -> str:
    return "publish" if name.startswith("sync: ") else WITHIN.get(name, name)


def _color(name: str) -> str:
    return COLORS.get(_family(name), COLORS["other"])
