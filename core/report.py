"""The report of a run directory."""

from pathlib import Path


def build_report(directory: Path) -> Path:
    return directory / "report.html"
