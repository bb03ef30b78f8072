"""How a run is watched beside its files: the timeline of steps, the port that Prometheus reads."""

from __future__ import annotations

from pydantic import Field

from core.config import Section


class WatchConfig(Section):
    """The timeline of steps, and where Prometheus finds the metrics."""

    timeline_steps: list[int] = [1, 2]
    """Steps whose timeline is written to timeline.json; `python jobs/watch.py <run> --timeline` asks for another one."""
    timeline_every: int = Field(default=0, ge=0)
    """Steps between further timelines; 0: none."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port on which a Ray that is started here shows the metrics to Prometheus; 0: a free one. prometheus.json in the run directory has it."""
