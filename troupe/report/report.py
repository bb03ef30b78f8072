"""`report.html`: everything a run directory knows on one page, one file, without a network.

Built from the directory alone, so that it can be rebuilt anywhere: `python jobs/report.py runs/a`; several runs
side by side: `python jobs/report.py runs/a runs/b --output compare.html`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from troupe.config.fields import flat_values
from troupe.errors import ConfigError
from troupe.processes.progress import duration
from troupe.report.charts import chart_groups, phase_chart, phase_color, reliability_chart, short
from troupe.report.page import render, write_page
from troupe.report.report_benchmark import BENCHMARK, build_benchmark_report
from troupe.report.report_data import RunRecord, read_run
from troupe.report.report_timeline import timeline_steps
from troupe.report.report_titles import title_of
from troupe.report.samples import (
    OPEN_PAIRS,
    before_and_after,
    change_within,
    difference_between,
    kept_groups,
    reward_weights,
)

METHODS = {"sft": "SFT", "reward_model": "reward model", "dpo": "DPO", "grpo": "GRPO", "rloo": "RLOO", "ppo": "PPO"}
HEADLINES = ("reward/mean", "loss", "sft/nll", "reward_model/accuracy", "dpo/accuracy")
"""Training metrics that are shown first, beside the held-out one."""


def build_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of one run, or of a benchmark; return where it is."""
    directory = Path(directory)
    if (directory / BENCHMARK).is_file():
        return build_benchmark_report(directory, output)
    return write_page(output or directory / "report.html", "report.html.jinja", **_context(read_run(directory)))


def report_page(run: RunRecord, live: Mapping[str, Any]) -> str:
    """Return the report of a run as HTML; `live` is what the page needs that follows it."""
    return render("report.html.jinja", **_context(run), live=live)


def _context(run: RunRecord) -> dict[str, Any]:
    groups, of = kept_groups(run)
    charts, folded = chart_groups([run])
    return {
        "run": run,
        "runs": [run],
        "method": METHODS.get(run.method, run.method),
        "words": _in_words(run),
        "failure": next((event for event in reversed(run.events) if event.get("kind") == "failed"), None),
        "tiles": list(_tiles(run)),
        "charts": charts,
        "folded": folded,
        "calibration": reliability_chart(run.calibration) if run.calibration else None,
        "phases": _phases(run),
        "phase_chart": phase_chart(run) if run.phases else None,
        "timeline": list(timeline_steps(run.timeline)),
        "answers": list(before_and_after(run)),
        "open_pairs": OPEN_PAIRS,
        "groups": groups,
        "weights": reward_weights(run.config),
        "groups_in_files": of,
        "environment": list(_environment(run.environment)),
    }


def _in_words(run: RunRecord) -> str:
    """Describe model, data and batch in a sentence, as far as the recipe has them."""
    config = run.config
    model, data, rollout = (config.get(key) or {} for key in ("model", "data", "rollout"))
    words = []
    if model:
        words.append(
            str(model.get("path") or f"{model.get('num_layers')} layers, {model.get('hidden_size')} wide, from scratch")
        )
    if data:
        words.append(str(data.get("path") or data.get("type")).replace("_", " "))
    if rollout.get("prompts_per_step") and rollout.get("group_size"):
        prompts, branches = rollout["prompts_per_step"], rollout["group_size"]
        answers = f" x {branches} branches = {prompts * branches}" if branches > 1 else ""
        words.append(f"{prompts} {'prompts' if answers else ''}{answers} answers a step".replace("  ", " "))
    elif config.get("batch_size"):
        kind = "prompts with their answers" if run.method in ("reward_model", "dpo") else "samples"
        longest = f", at most {config['max_length']} tokens each" if config.get("max_length") else ""
        words.append(f"{config['batch_size']} {kind} a step{longest}")
    return " · ".join(words) + "." if words else ""


def _tiles(run: RunRecord) -> Iterator[dict[str, str]]:
    """Yield the headlines: label, value, what it was before, and a remark."""
    for name in (run.headline, *HEADLINES):
        ends = run.first_and_last(name) if name else None
        if name and ends:
            several = len(run.points(name)) > 1
            found = change_within(run, name) if name == run.headline and several else None
            remark = (
                f"change {interval(*found)}" if found else "" if several else f"step {run.points(name)[0][0]} alone"
            )
            label = title_of(name)[0]
            yield {
                "label": label,
                "before": short(ends[0]) if several else "",
                "value": short(ends[1]),
                "remark": remark,
            }
    yield {"label": "Steps", "value": str(run.last_step), "remark": f"of {run.status.get('steps', '?')}"}
    yield {"label": "Wall time", "value": duration(run.wall_s), "remark": ""}
    if (speed := run.mean("tokens_per_second")) is not None:
        yield {"label": "Tokens per second", "value": short(speed), "remark": "mean"}
    if gaps := run.values("consistency/logprob_gap"):
        bound = run.consistency_bound
        remark = f"of {short(bound)}" if bound is not None else ""
        yield {"label": "Largest trainer gap", "value": short(max(gaps)), "remark": remark}


def interval(change: Any, count: int) -> str:
    """Return a change with its 95 % interval and the number of samples that it is over."""
    return f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f}; 95 %, {count} samples)"


def _phases(run: RunRecord) -> list[dict[str, Any]]:
    means = {phase: run.seconds(phase) for phase in run.phases}
    total = sum(means.values()) or 1.0
    return [
        {
            "name": phase,
            "seconds": seconds,
            "share": seconds / total,
            "speed": run.tokens_per_second(phase),
            "color": phase_color(run, phase),
        }
        for phase, seconds in sorted(means.items(), key=lambda item: -item[1])
    ]


def _environment(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the run ran on: code, packages, machine."""
    code = facts.get("code") or {}
    changed = " with uncommitted changes" if code.get("dirty") else ""
    yield "Code", str(code.get("commit") or "unknown")[:12] + changed
    yield "Python", str(facts.get("python", ""))
    yield from (facts.get("packages") or {}).items()
    yield "Cores", str(facts.get("cores", ""))
    yield "Memory", f"{facts.get('memory_gib', '?')} GiB"
    yield "Platform", str(facts.get("platform", ""))


# -- several runs ------------------------------------------------------------------------------------------------


def build_comparison(directories: Sequence[Path], output: Path) -> Path:
    """Write one page with the curves of several runs over each other."""
    runs = [read_run(Path(directory)) for directory in directories]
    if len({run.name for run in runs}) < len(runs):
        raise ConfigError("two of the runs have the same name; a comparison needs names that tell them apart")
    held_out = list(dict.fromkeys(name for run in runs for name in run.names() if name.startswith("eval/")))
    compared = [*held_out, *(["reward/mean"] if any(run.points("reward/mean") for run in runs) else [])]
    charts, folded = chart_groups(runs)
    return write_page(
        output,
        "comparison.html.jinja",
        runs=runs,
        compared={name: title_of(name)[0] for name in compared},
        differences=_paired(runs, held_out),
        settings=_differing([flat_values(run.config) for run in runs]),
        environments=_differing([flat_values(run.environment) for run in runs]),
        charts=charts,
        folded=folded,
        phases=list(dict.fromkeys(phase for run in runs for phase in [*run.phases, *(["step"] if run.phases else [])])),
    )


def _paired(runs: Sequence[RunRecord], held_out: Sequence[str]) -> list[list[str]]:
    """Return rows of (metric, run, its difference to the first run over the same samples)."""
    return [
        [title_of(name)[0], other.name, interval(*found)]
        for name in held_out
        for other in runs[1:]
        if (found := difference_between(runs[0], other, name)) is not None
    ]


def _differing(sides: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return rows of (key, value of every side) where the sides differ."""
    keys = [key for key in sorted({key for side in sides for key in side}) if key and not key.startswith("run.")]
    return [
        [key, *(str(side.get(key, "–")) for side in sides)]
        for key in keys
        if len({repr(side.get(key)) for side in sides}) > 1
    ]
