"""The page around a report: its templates, and the styles and scripts that it carries in itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from troupe.files import to_json, write_atomically
from troupe.processes.progress import duration
from troupe.report.charts import run_numbers, short
from troupe.report.report_data import RunRecord, day_and_time
from troupe.secrets import public_text
from troupe.style import STYLE

HERE = Path(__file__).parent


def write_page(path: Path, template: str, **context: Any) -> Path:
    """Write the page that `template` makes of `context`, without secrets; return where it is."""
    write_atomically(path, render(template, **context))
    return path


def render(
    template: str,
    *,
    runs: Sequence[RunRecord] = (),
    groups: Any = (),
    weights: Mapping[str, float] | None = None,
    live: Mapping[str, Any] | None = None,
    **context: Any,
) -> str:
    """Return one HTML document that refers to nothing outside.

    The script gets the numbers of `runs`, which the charts name by their place, and the `groups` of samples with the
    `weights` of their scores' parts.
    """
    numbers = [run_numbers(run) for run in runs]
    data = {"runs": numbers, "groups": groups, "weights": weights or {}, "live": live}
    text = _environment().get_template(template).render(data=data, runs=runs, live=live, **context)
    # A lone surrogate, which JSON can hold, has no place in a file.
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=ChainableUndefined,
        finalize=_masked,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_function"] = _dumps
    made.filters |= {"short": short, "duration": duration, "moment": day_and_time, "json": to_json}
    made.globals |= {
        "style": Markup(_read("vendor/uPlot.min.css") + STYLE),
        "uplot": Markup(_read("vendor/uPlot.iife.min.js")),
        "script": Markup(_read("app.js")),
    }
    return made


def _masked(value: Any) -> Any:
    """Return what a template prints without secrets: once it is escaped, they could not be found in it."""
    return public_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _dumps(value: Any, **_: Any) -> str:
    """Return JSON for jinja's `tojson`, which escapes markup, without the line ends that old scripts stumble over."""
    return public_text(to_json(value)).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
