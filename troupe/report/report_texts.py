"""The parts of a report that are read rather than looked at: answers, rollouts, events, recipe, environment.

Model output is text of strangers: everything passes through `escape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from troupe.files import to_json
from troupe.report.charts import short
from troupe.report.report_data import RunRecord, day_and_time
from troupe.report.report_page import escape, table

OPEN_SAMPLES = 6
"""Samples that are shown at once; the others unfold."""
MOST_SAMPLES = 24
"""Samples that are on the page at all; answers.jsonl has the others."""
ROLLOUT_STEPS = 2
MOST_EVENTS = 200


def before_and_after(run: RunRecord) -> str:
    """The same held-out samples at the first and at the last evaluated step, side by side, set by set."""
    sets = list(dict.fromkeys(row["set"] for row in run.answers))
    return "".join(_answer_set(run, name, [row for row in run.answers if row["set"] == name]) for name in sets)


def _answer_set(run: RunRecord, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    before = {row["sample_id"]: row for row in rows if row["step"] == first}
    after = {row["sample_id"]: row for row in rows if row["step"] == last}
    shared = [sample_id for sample_id in before if sample_id in after]
    both = [before] if first == last else [before, after]
    cards = [_sample_card([answers[sample_id] for answers in both]) for sample_id in shared[:MOST_SAMPLES]]
    lead = _tally(run, [(before[sample_id], after[sample_id]) for sample_id in shared]) if first != last else ""
    folded = "".join(cards[OPEN_SAMPLES:])
    if folded:
        folded = f'<details><summary class="soft" style="margin:4px 0 12px">{len(cards) - OPEN_SAMPLES} more</summary>{folded}</details>'
    many = f", the first {len(cards)} of them here" if len(cards) < len(shared) else ""
    heading = f'<p class="lead" style="margin:-8px 0 14px">{escape(name.replace("_", " "))}, {len(shared)} samples drawn by their ids{many}. {escape(lead)}</p>'
    return heading + "".join(cards[:OPEN_SAMPLES]) + folded


def _tally(run: RunRecord, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """On how many samples the deciding metric rose, fell and stayed."""
    names = list(dict.fromkeys(name for row, _ in pairs for name in row.get("metrics", {})))
    name = run.best_name if run.best_name in names else next(iter(names), None)
    if name is None:
        return ""
    changes = [(new["metrics"].get(name) or 0) - (old["metrics"].get(name) or 0) for old, new in pairs]
    rose, fell = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return (
        f"{name.replace('_', ' ').capitalize()} rose on {rose}, fell on {fell}, stayed on {len(pairs) - rose - fell}."
    )


def _sample_card(rows: Sequence[Mapping[str, Any]]) -> str:
    sample = rows[0]
    answers = "".join(_answer(f"step {row['step']}", row.get("metrics", {}), row.get("text", "")) for row in rows)
    return (
        f'<article class="card">{_sample_head(sample)}'
        f'<div class="text prompt">{escape(sample.get("prompt", ""))}</div><div class="pair">{answers}</div></article>'
    )


def _sample_head(sample: Mapping[str, Any]) -> str:
    gold = sample.get("gold")
    told = f"<span>gold: <b>{escape(gold)}</b></span>" if gold is not None else ""
    return f'<div class="id"><span>{escape(sample.get("sample_id", ""))}</span>{told}</div>'


def _answer(label: str, numbers: Mapping[str, Any], text: str) -> str:
    shown = "".join(f"<span>{escape(name)} {_judged(value)}</span>" for name, value in numbers.items())
    content = escape(text) if text.strip() else '<span class="soft">(empty)</span>'
    return f'<div class="answer"><header><b>{escape(label)}</b>{shown}</header><div class="text">{content}</div></div>'


def _judged(value: Any) -> str:
    """A number; right and wrong answers are coloured."""
    if not isinstance(value, int | float):
        return f"<b>{escape(value)}</b>"
    return f'<b class="{"right" if value == 1 else "wrong" if value == 0 else ""}">{short(value)}</b>'


def last_rollouts(run: RunRecord) -> str:
    """The sampled groups of the last steps, each unfolding into its branches."""
    steps = sorted({line["step"] for line in run.rollouts})[-ROLLOUT_STEPS:]
    lines = [line for line in run.rollouts if line["step"] in steps]
    return "".join(_group_card(line) for line in sorted(lines, key=lambda line: -line["step"]))


def _group_card(line: Mapping[str, Any]) -> str:
    branches = line.get("branches", [])
    scores = [branch["score"] for branch in branches if branch.get("score") is not None]
    mean = f" · mean {short(sum(scores) / len(scores))}" if scores else ""
    prompt = " ".join(str(line.get("prompt", "")).split())
    begins = prompt if len(prompt) <= 110 else prompt[:110] + " …"
    answers = "".join(_branch(branch) for branch in branches)
    return (
        f'<details class="card"><summary>{escape(begins)} <span class="soft">· step {line["step"]}{mean}</span>'
        f'{_chips(branches)}</summary><div style="margin-top:12px">{_sample_head(line)}'
        f'<div class="text prompt">{escape(line.get("prompt", ""))}</div></div><div class="branches">{answers}</div></details>'
    )


def _chips(branches: Sequence[Mapping[str, Any]]) -> str:
    """One small block per branch, the fuller the better its score within the group."""
    scores = [branch.get("score") for branch in branches]
    known = [score for score in scores if score is not None]
    low, high = min(known, default=0), max(known, default=0)
    blocks = []
    for score in scores:
        share = 0.0 if score is None else (score - low) / (high - low) if high > low else float(score > 0)
        blocks.append(f'<i style="background:var(--good);opacity:{0.15 + 0.85 * share:.2f}"></i>')
    return f'<span class="chips" title="scores of the branches">{"".join(blocks)}</span>'


def _branch(branch: Mapping[str, Any]) -> str:
    score = branch.get("score")
    label = "no score" if score is None else f"score {short(score)}"
    numbers = {
        **branch.get("parts", {}),
        "tokens": branch.get("num_tokens"),
        "ended by": branch.get("finish_reason"),
    }
    shown = "".join(
        f"<span>{escape(name)} {escape(short(value) if isinstance(value, int | float) else value)}</span>"
        for name, value in numbers.items()
        if value is not None
    )
    text = branch.get("text", "")
    content = escape(text) if text.strip() else '<span class="soft">(empty)</span>'
    return f'<div class="answer"><header><b>{escape(label)}</b>{shown}</header><div class="text">{content}</div></div>'


def events_table(run: RunRecord) -> str:
    """What happened beside the steps, the newest last."""
    rows = [
        (
            f'<span class="key">{escape(day_and_time(event.get("at", "")))}</span>',
            escape(event.get("step", "")),
            f'<span class="{escape(event.get("kind"))}">{escape(str(event.get("kind", "")).replace("_", " "))}</span>',
            f'<span class="soft">{escape(_details(event))}</span>',
        )
        for event in run.events[-MOST_EVENTS:]
    ]
    return table(["Time", "Step", "Event", "Details"], rows, numbers=(1,)) if rows else ""


def _details(event: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in event.items() if key not in ("at", "step", "kind", "traceback")}
    return ", ".join(
        f"{key.replace('_', ' ')}: {value if isinstance(value, str) else to_json(value)}"
        for key, value in shown.items()
    )


def settings(run: RunRecord) -> str:
    """The recipe, ready to be used again, and what it ran on."""
    environment = run.environment
    packages = environment.get("packages") or {}
    code = environment.get("code") or {}
    commit = str(code.get("commit") or "unknown")[:12] + (" with uncommitted changes" if code.get("dirty") else "")
    facts = {
        "Code": commit,
        "Python": environment.get("python", ""),
        **packages,
        "Cores": environment.get("cores", ""),
        "Memory": f"{environment.get('memory_gib', '?')} GiB",
        "Platform": environment.get("platform", ""),
    }
    rows = [(escape(name), escape(value)) for name, value in facts.items()]
    recipe = (
        f'<details class="card"><summary>Recipe: config.yaml</summary><pre>{escape(run.config_text)}</pre></details>'
    )
    return recipe + (table(["Environment", ""], rows) if environment else "")
