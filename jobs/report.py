"""Build the report of a run, or of several over each other, from their directories alone.

usage: python jobs/report.py runs/a [runs/b ...] [--output compare.html]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from troupe.config.program import program
from troupe.report.report import build_comparison, build_report


def main(arguments: list[str]) -> Path:
    """Write the page that the command line asks for; returns where it is."""
    given = parser().parse_args(arguments)
    if len(given.runs) == 1:
        return build_report(given.runs[0], given.output)
    return build_comparison(given.runs, given.output or Path("compare.html"))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python jobs/report.py", description="Build the report of one or more runs.")
    made.add_argument("runs", nargs="+", type=Path, help="run directories; several are laid over each other")
    made.add_argument("--output", type=Path, help="the page; <run>/report.html, or compare.html for several runs")
    return made


if __name__ == "__main__":
    with program():
        print(main(sys.argv[1:]))
