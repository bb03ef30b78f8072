"""Metrics for Prometheus: what the roles are doing between steps, and every metric of a run, through Ray's agent.

Ray runs an agent on each machine that collects what `ray.util.metrics` records in any process there and shows it in
Prometheus's format; Ray puts `ray_` before each name. Without Ray nothing is recorded. The names are `METERS`, and
`troupe_<metric>` of everything in metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from troupe.files import to_json, write_atomically
from troupe.timeline import RECORDER, InFlight

PREFIX = "troupe_"
RUN, ROLE = "TROUPE_RUN", "TROUPE_ROLE"
"""Environment variables of a worker: the run's name, and `<role>-<rank>`."""
TARGETS_FILE = "prometheus.json"
METERS = {
    "generator_requests_in_flight": ("gauge", "Prompts that an engine works on or has waiting"),
    "generator_tokens": ("counter", "Tokens of finished answers"),
    "generator_tokens_per_second": (
        "gauge",
        "Tokens of the answers since the engine last began to work, by its seconds",
    ),
    "rewarder_judgements_in_flight": ("gauge", "Groups whose scores are awaited"),
    "rewarder_judgements": ("counter", "Answers that were judged"),
    "rewarder_failures": ("counter", "Answers whose judgement is missing, or whose scoring raised"),
    "rewarder_latency_seconds": ("histogram", "Seconds from a finished group to its scores"),
    "trainer_rows": ("counter", "Packed rows that a rank trained on"),
    "trainer_tokens": ("counter", "Tokens of those rows, prompts included"),
    "working": ("gauge", "1 while a worker is in this phase of its work"),
    "working_seconds": ("counter", "Seconds that a worker spent in this phase"),
}
"""Live metrics, without the prefix: kind, and what they are. Every one is tagged with run, role and rank."""
TAGS = ("run", "role", "rank")
PHASED = ("working", "working_seconds")
LATENCIES_S = [0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]

REFRESH_S = 4.0
"""Ray forgets a gauge that was not set for two of its intervals, of 10 s; a phase or a step may last much longer."""

_known: dict[str, Any] = {}
_held: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Any, float]] = {}
"""The gauges of this process and what they show: (name, tags) -> (gauge, value)."""


def record(name: str, value: float, **tags: str) -> None:
    """Set the gauge, add to the counter or observe for the histogram `name` of `METERS`; nothing without Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    kind, description = METERS[name]
    meter = _known.get(name) or _build(name, kind, description)
    role, _, rank = os.environ.get(ROLE, "driver-0").rpartition("-")
    tags = {"run": os.environ.get(RUN, ""), "role": role, "rank": rank, **tags}
    if kind == "gauge":
        hold(name, meter, value, tags)
    elif kind == "histogram":
        meter.observe(value, tags=tags)
    elif value > 0:  # Ray's counters refuse zero
        meter.inc(value, tags=tags)


def _build(name: str, kind: str, description: str) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    tags = (*TAGS, "phase") if name in PHASED else TAGS
    if kind == "histogram":
        meter: Any = Histogram(PREFIX + name, description, boundaries=LATENCIES_S, tag_keys=tags)
    else:
        meter = (Gauge if kind == "gauge" else Counter)(PREFIX + name, description, tag_keys=tags)
    return _known.setdefault(name, meter)


def hold(name: str, gauge: Any, value: float, tags: Mapping[str, str]) -> None:
    """Show a value until another one, however long that takes."""
    gauge.set(value, tags=dict(tags))
    _held[name, tuple(tags.items())] = (gauge, value)
    _refresher()


@functools.cache
def _refresher() -> threading.Thread:
    def refresh() -> None:
        while True:
            time.sleep(REFRESH_S)
            for (_, tags), (gauge, value) in list(_held.items()):
                with contextlib.suppress(Exception):  # Ray may be ending at this moment
                    gauge.set(value, tags=dict(tags))

    thread = threading.Thread(target=refresh, name="gauges", daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def working(phase: str) -> Iterator[None]:
    """Provide the block is work of this process, for the timeline and for Prometheus."""
    record("working", 1, phase=phase)
    begun = RECORDER.begin(phase)
    try:
        yield
    finally:
        record("working_seconds", RECORDER.end(begun), phase=phase)
        record("working", 0, phase=phase)


class Throughput:
    """Requests that an engine has in flight, and its speed; nothing is known of an answer before it is finished."""

    def __init__(self) -> None:
        self._flight = InFlight("generate")
        self._begun, self._tokens = 0.0, 0

    def asked(self, requests: int) -> None:
        """So many requests have been handed to the engine."""
        if self._flight.count == 0:
            self._begun, self._tokens = time.monotonic(), 0
        record("generator_requests_in_flight", self._flight.change(requests))

    def finished(self, tokens: int) -> None:
        """Count a request that has its answers, of so many tokens together."""
        self._tokens += tokens
        record("generator_tokens", tokens)
        record("generator_tokens_per_second", self._tokens / max(time.monotonic() - self._begun, 1e-3))
        record("generator_requests_in_flight", self._flight.change(-1))


def legal(metric: str) -> str:
    """Return the name under which Prometheus has a metric of metrics.jsonl, without Ray's `ray_` before it.

    Example: `reward/mean` is `troupe_reward_mean`; `eval/gsm-8k/accuracy` is `troupe_eval_gsm_8k_accuracy`.
    """
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


class PrometheusTracker:
    """Shows each step's metrics as gauges, tagged with the run and with the metric's own name."""

    name = "prometheus"

    def __init__(self, run: str) -> None:
        os.environ[RUN] = run  # what this process records live belongs to the run, too
        self._run = run
        self._gauges: dict[str, Any] = {}

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        from ray.util.metrics import Gauge

        for metric, value in {"step": step, **metrics}.items():
            name = legal(metric)
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, f"{metric} of the last step", tag_keys=("run", "metric"))
            if math.isfinite(value):
                hold(name, self._gauges[name], value, {"run": self._run, "metric": metric})

    def on_close(self, state: str) -> None:
        """Forget the gauges: the next run of this process may meet another Ray."""
        os.environ.pop(RUN, None)
        _known.clear()
        _held.clear()


@contextlib.contextmanager
def write_prometheus_targets(directory: Path, run: str, addresses: list[str]) -> Iterator[None]:
    """While the block runs, prometheus.json tells Prometheus (`file_sd_configs`) where the cluster's agents are."""
    file = directory / TARGETS_FILE
    if not addresses:  # without Ray
        yield
        return
    write_atomically(file, to_json([{"targets": addresses, "labels": {"troupe_run": run}}]) + "\n")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
