"""Look at a run while it goes, or after: in the terminal, or as a page that follows it.

usage: python jobs/watch.py runs/a            # at a glance, over SSH too; q ends the look and not the run
       python jobs/watch.py runs --web        # the report of any run of the directory, live, on this machine's loopback
       python jobs/watch.py runs/a --timeline # ask for the timeline of the step that is running
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console, RenderableType
from rich.live import Live

from troupe.config.program import program
from troupe.report.live_page import LOOPBACK, LiveServer
from troupe.report.report_data import RunRecord, read_run
from troupe.report.watch_screen import screen
from troupe.report.watching import request_timeline, require_run, runs_in, signature, writer_is_gone
from troupe.timeline import TIMELINE_FILE

SECONDS_BETWEEN_LOOKS = 1.0


def main(arguments: list[str]) -> None:
    """Show what the command line asks for."""
    given = parser().parse_args(arguments)
    if given.web:
        serve(given.run, given.host, given.port)
    elif given.timeline:
        run = require_run(given.run)
        request_timeline(run)
        print(f"the run writes {run / TIMELINE_FILE} at the end of the step")
    else:
        look(require_run(given.run), once=given.once)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python jobs/watch.py",
        description="Look at a run while it goes, or after. Nothing of the run is touched.",
    )
    made.add_argument("run", type=Path, help="run directory; with --web also the directory that holds the runs")
    made.add_argument("--web", action="store_true", help="serve the report of every run beside it as a live page")
    made.add_argument(
        "--host", default="127.0.0.1", help="address of the page; beyond loopback it wants a key, which is printed"
    )
    made.add_argument("--port", type=int, default=0, help="port of the page; 0: a free one")
    made.add_argument("--once", action="store_true", help="print once and end, as happens without a terminal")
    made.add_argument("--timeline", action="store_true", help="ask for the timeline of the step that is running")
    return made


def look(run: Path, *, once: bool) -> None:
    """Show the run in the terminal until q or Ctrl-C; without a terminal, once."""
    console = Console()
    if once or not (console.is_terminal and sys.stdin.isatty()):
        console.print(_screen(read_run(run), run, console))
        return
    known, record = "", None
    with _single_keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            if (mark := signature(run)) != known or record is None:
                known, record = mark, read_run(run)
            live.update(_screen(record, run, console), refresh=True)
            if _key_within(SECONDS_BETWEEN_LOOKS) in ("q", "Q", "\x04"):
                return


def _screen(record: RunRecord, run: Path, console: Console) -> RenderableType:
    return screen(record, width=console.width, gone=writer_is_gone(run))


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Read keys one by one without an echo; the terminal is put back at the end."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key_within(seconds: float) -> str:
    """Return the key that was pressed meanwhile, if any; q where the terminal has gone away."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") or "q" if ready else ""


def serve(path: Path, host: str, port: int) -> None:
    """Serve the live page of a run, and of those beside it, until Ctrl-C."""
    is_run = (path / "config.yaml").is_file()
    directory, first = (path.parent, path.name) if is_run else (path, next(iter(runs_in(path)), ""))
    if not first:
        require_run(path)
    with LiveServer(directory, host=host, port=port) as server:
        print(f"{server.url(first)}   (Ctrl-C ends the page, not the run)", flush=True)
        if host in LOOPBACK:
            there = server.server_address[1]
            print(
                f"from another machine: ssh -L {there}:127.0.0.1:{there} {{this machine}}, then the same address",
                flush=True,
            )
        server.serve_forever()


if __name__ == "__main__":
    with program(), contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
