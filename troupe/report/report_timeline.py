"""The timeline of a step in a report: for the driver and each worker, when it worked and for which share of the step.

A summary of timeline.json without what is nested or in flight: Perfetto shows that (ui.perfetto.dev).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from troupe.report.charts import PHASE_COLORS, short

MOST_SHOWN = 2
PHASES = {
    "generate": "rollout",
    "receive weights": "publish",
    "read": "reference",
    "logprobs": "reference",
    "judgements": "reward",
    "score": "reward",
    "probe": "evaluate",
    "save": "checkpoint",
    "optimizer step": "update",
}
"""A worker's work -> the driver's phase that waits for it, which has the same colour."""
JOINED = 0.004
"""Share of a step: work of one kind with shorter gaps is one bar."""


def timeline_steps(trace: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the latest steps of a trace: `step`, `seconds`, and the `tracks` with their bars."""
    events = [event for event in trace.get("traceEvents", []) if event.get("ph") == "X" and "step" in event]
    for step in sorted({event["step"] for event in events})[-MOST_SHOWN:]:
        spans = [event for event in events if event["step"] == step]
        whole = next((span for span in spans if span["name"] == f"step {step}"), None)
        if whole is None:
            continue
        tracks = [
            _track(name, mine, whole)
            for pid, name in enumerate(trace.get("tracks", []))
            if (mine := [span for span in spans if span["pid"] == pid and span is not whole])
        ]
        kinds = {bar["kind"]: bar["color"] for track in tracks for bar in track["bars"]}
        yield {"step": step, "seconds": whole["dur"] / 1e6, "tracks": tracks, "kinds": kinds}


def _track(name: str, spans: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> dict[str, Any]:
    length, begun = max(whole["dur"], 1), whole["ts"]
    bars: list[dict[str, Any]] = []
    for span in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
        kind = "publish" if span["name"].startswith("sync: ") else PHASES.get(span["name"], span["name"])
        begin, end = (span["ts"] - begun) / length, (span["ts"] + span["dur"] - begun) / length
        if bars and end <= bars[-1]["end"]:
            continue  # part of the bar before
        if bars and bars[-1]["kind"] == kind and begin - bars[-1]["end"] < JOINED:
            bars[-1]["end"] = end
        else:
            bars.append(
                {"kind": kind, "begin": begin, "end": end, "color": PHASE_COLORS.get(kind, PHASE_COLORS["other"])}
            )
    busy, until = 0.0, 0.0
    for bar in bars:
        busy += max(bar["end"] - max(bar["begin"], until), 0.0)
        until = max(until, bar["end"])
        seconds, at = (bar["end"] - bar["begin"]) * length / 1e6, bar["begin"] * length / 1e6
        bar["title"] = f"{bar['kind']}: {short(seconds)} s, from {short(at)} s"
    return {"name": name, "busy": busy, "bars": bars}
