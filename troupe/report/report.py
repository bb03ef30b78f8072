"""`report.html`: everything a run directory knows on one page, one file, without a network.

Built from the directory alone, so that it can be rebuilt anywhere: `python jobs/report.py runs/a`; several runs
side by side: `python jobs/report.py runs/a runs/b --output compare.html`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from troupe.config.fields import flat_values
from troupe.errors import ConfigError
from troupe.files import write_atomically
from troupe.processes.progress import duration
from troupe.report.charts import short
from troupe.report.report_benchmark import BENCHMARK, build_benchmark_report
from troupe.report.report_curves import (
    calibration,
    curve_groups,
    curve_sections,
    phase_chart,
    phase_color,
    run_color,
    title_of,
)
from troupe.report.report_data import RunRecord, day_and_time, read_run
from troupe.report.report_page import escape, navigation, page, section, table
from troupe.report.report_texts import before_and_after, events_table, last_rollouts, settings
from troupe.report.report_timeline import timeline_strips
from troupe.report.report_titles import LEARNING

METHODS = {"sft": "SFT", "reward_model": "reward model", "dpo": "DPO", "grpo": "GRPO", "rloo": "RLOO", "ppo": "PPO"}
HEADLINES = ("reward/mean", "loss", "sft/nll", "reward_model/accuracy", "dpo/accuracy")
"""Training metrics that are shown first, beside the held-out one."""


def build_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of one run, or of a benchmark; returns where it is."""
    directory = Path(directory)
    if (directory / BENCHMARK).is_file():
        return build_benchmark_report(directory, output)
    run = read_run(directory)
    output = output or directory / "report.html"
    write_atomically(output, page(f"{run.name} · Troupe", report_body(run)))
    return output


def report_body(run: RunRecord) -> str:
    """What the page of a run shows."""
    curves = curve_groups([run])
    parts = {
        LEARNING: curves.pop(LEARNING, ""),
        "Calibration": calibration(run),
        **curves,
        "Where the time goes": _times(run),
        "Timeline": timeline_strips(run.timeline),
        "Before and after": before_and_after(run),
        "Last rollouts": last_rollouts(run),
        "Events": events_table(run),
        "Placement": _placement(run),
        "Recipe and environment": settings(run),
    }
    present = {title: body for title, body in parts.items() if body}
    sections = "".join(section(title, body) for title, body in present.items())
    return _masthead(run, list(present)) + _tiles(run) + sections + _footer()


def build_comparison(directories: Sequence[Path], output: Path) -> Path:
    """Write one page with the curves of several runs over each other."""
    runs = [read_run(Path(directory)) for directory in directories]
    if len({run.name for run in runs}) < len(runs):
        raise ConfigError("two of the runs have the same name; a comparison needs names that tell them apart")
    body = (
        f'<p class="over">Troupe · comparison</p><h1>{escape(" · ".join(run.name for run in runs))}</h1>'
        + section("Overview", _overview(runs))
        + curve_sections(runs)
        + section("Seconds of a step by phase", _phases_side_by_side(runs))
        + section("Settings that differ", _differences(runs))
        + _footer()
    )
    write_atomically(output, page("Comparison · Troupe", body))
    return output


# -- one run -----------------------------------------------------------------------------------------------------


def _masthead(run: RunRecord, titles: Sequence[str]) -> str:
    begun = day_and_time(run.events[0]["at"]) if run.events else ""
    failure = next((event for event in reversed(run.events) if event.get("kind") == "failed"), None)
    banner = ""
    if run.state == "failed" and failure is not None:
        banner = f'<p class="banner"><b class="failed">Failed at step {failure.get("step")}.</b> {escape(failure.get("error", ""))}</p>'
        if details := failure.get("details"):
            banner += f'<details class="banner"><summary>Details</summary><pre>{escape(details)}</pre></details>'
    return (
        f'<p class="over">Troupe · {escape(METHODS.get(run.method, run.method))}</p>'
        f'<div class="title"><h1>{escape(run.name)}</h1>{_state(run)}</div>'
        f'<p class="lead">{escape(_in_words(run))}{f" Begun {begun} UTC." if begun else ""}{_restarts(run)}</p>'
        f"{banner}{navigation(titles)}"
    )


def _state(run: RunRecord) -> str:
    return f'<span class="state {escape(run.state)}">{escape(run.state)}</span>'


def _restarts(run: RunRecord) -> str:
    if not run.restarts:
        return ""
    return f' <span class="restarted">Restarted {run.restarts} time{"s" if run.restarts > 1 else ""}.</span>'


def _in_words(run: RunRecord) -> str:
    """Model, data and batch in a sentence, as far as the recipe has them."""
    config = run.config
    model, data, rollout = (config.get(key) or {} for key in ("model", "data", "rollout"))
    words = []
    if model:
        words.append(
            str(model.get("path") or f"{model.get('num_layers')} layers, {model.get('hidden_size')} wide, from scratch")
        )
    if data:
        words.append(f"· {str(data.get('path') or data.get('type')).replace('_', ' ')}")
    if rollout.get("prompts_per_step") and rollout.get("group_size"):
        prompts, branches = rollout["prompts_per_step"], rollout["group_size"]
        answers = f"{branches} branches = {prompts * branches} answers"
        words.append(f"· {prompts} prompts x {answers} a step" if branches > 1 else f"· {prompts} answers a step")
    elif config.get("batch_size"):
        kind = "prompts with their answers" if run.method in ("reward_model", "dpo") else "samples"
        longest = f", at most {config['max_length']} tokens each" if config.get("max_length") else ""
        words.append(f"· {config['batch_size']} {kind} a step{longest}")
    return " ".join(words) + "." if words else ""


def _tiles(run: RunRecord) -> str:
    tiles = [(title_of(name)[0], _change(run, name)) for name in (run.headline, *HEADLINES) if name]
    tiles += [
        ("Steps", f"{run.last_step} <span class=from>of {escape(run.status.get('steps', '?'))}</span>"),
        ("Wall time", duration(run.wall_s)),
        ("Tokens per second", _mean(run, "tokens_per_second")),
    ]
    gaps = run.values("consistency/logprob_gap")
    if gaps:
        bound = run.consistency_bound
        limit = f" <span class=from>of {short(bound)}</span>" if bound is not None else ""
        tiles.append(("Largest trainer gap", short(max(gaps)) + limit))
    shown = "".join(
        f'<div class="tile"><p>{escape(label)}</p><strong>{text}</strong></div>' for label, text in tiles if text
    )
    return f'<div class="tiles">{shown}</div>'


def _change(run: RunRecord, name: str) -> str:
    ends = run.first_and_last(name)
    return f"<span class=from>{short(ends[0])} →</span> {short(ends[1])}" if ends else ""


def _mean(run: RunRecord, name: str) -> str:
    mean = run.mean(name)
    return "" if mean is None else short(mean)


def _times(run: RunRecord) -> str:
    if not run.phases:
        return ""
    means = {phase: run.seconds(phase) for phase in run.phases}
    total = sum(means.values()) or 1.0
    speeds = {phase: run.tokens_per_second(phase) for phase in means}
    rows = [
        (
            escape(phase),
            f'<i class="bar" style="width:{seconds / total:.1%};background:{phase_color(run, phase)}"></i>',
            short(seconds),
            f"{seconds / total:.0%}",
            *([short(speeds[phase])] if any(speeds.values()) else []),
        )
        for phase, seconds in sorted(means.items(), key=lambda item: -item[1])
    ]
    columns = ["Phase", "", "Seconds a step", "Share", *(["Tokens/s"] if any(speeds.values()) else [])]
    return f'<div class="split">{phase_chart(run)}{table(columns, rows, numbers=(2, 3, 4))}</div>'


def _placement(run: RunRecord) -> str:
    if not run.placement:
        return ""
    columns = list(dict.fromkeys(key for row in run.placement for key in row))
    rows = [[escape(row.get(column, "")) for column in columns] for row in run.placement]
    return table([column.replace("_", " ").capitalize() for column in columns], rows)


# -- several runs ------------------------------------------------------------------------------------------------


def _overview(runs: Sequence[RunRecord]) -> str:
    held_out = list(dict.fromkeys(name for run in runs for name in run.names() if name.startswith("eval/")))
    compared = [*held_out, *(["reward/mean"] if any(run.points("reward/mean") for run in runs) else [])]
    columns = [
        "Run",
        "State",
        "Steps",
        "Wall time",
        *(title_of(name)[0] for name in compared),
        "Seconds a step",
        "Tokens/s",
    ]
    rows = [
        (
            f'<span class="key"><i style="background:{run_color(index)}"></i>{escape(run.name)}</span>',
            f'<span class="{escape(run.state)}">{escape(run.state)}</span>',
            str(run.last_step),
            duration(run.wall_s),
            *(_change(run, name) for name in compared),
            _mean(run, "time/step_s"),
            _mean(run, "tokens_per_second"),
        )
        for index, run in enumerate(runs)
    ]
    return table(columns, rows, numbers=range(2, len(columns)))


def _phases_side_by_side(runs: Sequence[RunRecord]) -> str:
    phases = list(dict.fromkeys(phase for run in runs for phase in run.phases))
    rows = [
        [escape(phase), *(short(run.seconds(phase)) if run.values(f"time/{phase}_s") else "–" for run in runs)]
        for phase in [*phases, "step"]
    ]
    return table(["Phase", *(run.name for run in runs)], rows, numbers=range(1, len(runs) + 1)) if phases else ""


def _differences(runs: Sequence[RunRecord]) -> str:
    recipes = [flat_values(run.config) for run in runs]
    keys = [key for key in sorted({key for recipe in recipes for key in recipe}) if not key.startswith("run.")]
    rows = [
        [escape(key), *(escape(recipe.get(key, "–")) for recipe in recipes)]
        for key in keys
        if len({repr(recipe.get(key)) for recipe in recipes}) > 1
    ]
    return table(["Setting", *(run.name for run in runs)], rows) if rows else ""


def _footer() -> str:
    return "<footer>Move over a chart to read all of them at that step. Times are UTC.</footer>"
