"""How a job is started: `run_program(train, GRPOConfig, "jobs/train_grpo.py")` at the end of its file, or `with
program():` around one that has a command line of its own.

It takes what `.env` adds to the environment, reads the command line, calls the job with its config and says what the
user did wrong in one sentence. Exit status: 0 done, 2 a TroupeError, 130 Ctrl-C, 143 SIGTERM, also where the job has
saved and could go on; any other exception is our bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import rich
from rich.logging import RichHandler

from troupe.config.loader import DRY_RUN, RECIPE_ONLY, Section, dump_config, parse_command_line
from troupe.disk import FULL, room
from troupe.environment import load_env_file
from troupe.errors import TroupeError
from troupe.hardware import set_up_driver
from troupe.processes.starting import LOADING
from troupe.processes.stopping import Interrupted, sigterm_interrupts
from troupe.secrets import SecretFilter, mask_console, public_text

C = TypeVar("C", bound=Section)

OURS = ("troupe", "__main__")


def run_program(
    main: Callable[[C], Any],
    config_cls: type[C],
    program_name: str,
    *,
    rehearse: Callable[[C], Iterable[str]] = lambda config: (),
) -> None:
    """Run `main(config)` with the config that the command line describes; see the module for exit statuses.

    `rehearse` does what `main` does before its first process, and returns what a dry run shows of it.
    """
    with program():
        show_log()
        config, flags = parse_command_line(config_cls, program_name)
        sys.argv[1:] = map(public_text, sys.argv[1:])  # trackers keep the command line
        if DRY_RUN in flags:
            describe(config, () if RECIPE_ONLY in flags else rehearse(config))
        else:
            main(config)


@contextlib.contextmanager
def program() -> Iterator[None]:
    """Around all that a program does: `.env` read, the console masked, the user's mistakes reported in one sentence."""
    mask_console()
    LOADING.close()
    try:
        with sigterm_interrupts():
            load_env_file()
            set_up_driver()
            yield
    except TroupeError as error:
        print(f"error: {user_error(error)}", *filter(None, [error.details]), sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # whoever reads, `head` say, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush would fail too
        raise SystemExit(0) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        place = Path(error.filename or ".")
        print(f"error: {place} cannot be written: {error.strerror}; {room(place)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        interrupted = Interrupted.by(error)
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        raise SystemExit(interrupted.status) from None


def user_error(error: BaseException) -> BaseException:
    """Return the error behind a worker's: ray gives its text, a remote traceback, and the original as `cause`."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, TroupeError) else error


def describe(config: Section, found: Iterable[str] = ()) -> None:
    """Print the derived numbers and the memory, where the recipe has some, what was `found`, and the recipe."""
    arithmetic = getattr(config, "arithmetic", None)
    if arithmetic is not None:
        print(f"# {arithmetic()}")
    from troupe.config.memory_estimate import memory_lines

    for line in (*memory_lines(config), *found):
        print(f"# {line}")
    print(dump_config(config), end="")


def show_log() -> None:
    """Our packages log from INFO on, libraries from WARNING on; beside a live bar without tearing it."""
    on_terminal = rich.get_console().is_terminal
    handler = RichHandler(show_path=False, markup=False) if on_terminal else logging.StreamHandler()
    plain = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.addFilter(SecretFilter())
    logging.basicConfig(format="%(message)s" if on_terminal else plain, handlers=[handler])
    for package in OURS:
        logging.getLogger(package).setLevel(logging.INFO)
