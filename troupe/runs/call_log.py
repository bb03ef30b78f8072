"""The log of model calls: what a run asked its policy and its judges, and what they answered, in `calls.jsonl`.

One line per call. A call of the policy asks for all branches of a prompt at once; those of judges follow it, since they
come back with the scores, also from the processes of reward workers. No header is ever written, and secrets of the
environment that stand in a text are replaced by their names.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rich
from rich.markup import escape

from troupe.config.run import CallLogConfig
from troupe.files import JsonLines
from troupe.records import Branch, Group, JudgeCall, Score
from troupe.secrets import public_text

log = logging.getLogger(__name__)

CALLS_FILE = "calls.jsonl"
MAX_SHOWN = 300
"""Characters of an answer on the console."""

Watch = Callable[[Group, float, float], None]
"""Told of a scored group, and when its branches were asked for and there: seconds since 1970."""


class CallLog:
    """Writes the calls of one run; `at` gives what the rollouts and the evaluator report to."""

    def __init__(self, directory: Path, config: CallLogConfig, *, model: str) -> None:
        self._lines = JsonLines(directory / CALLS_FILE)
        self._config, self._model = config, model
        self._failed = False

    def at(self, step: int, purpose: str) -> Watch | None:
        """Return the watch over the calls of a step (`rollout` or `evaluation`); None where nothing is to be logged."""
        if not self._config.fraction and not self._config.console_fraction:
            return None
        return lambda group, requested_at, received_at: self._log(group, step, purpose, requested_at, received_at)

    def _log(self, group: Group, step: int, purpose: str, requested_at: float, received_at: float) -> None:
        place = zlib.crc32(f"{group.sample.sample_id}/{purpose}/{step}".encode()) / 2**32
        if place < self._config.fraction:
            common = {"step": step, "purpose": purpose, "sample_id": group.sample.sample_id}
            records = [{**common, **self._policy_call(group, requested_at, received_at)}]
            records += [{**common, **call} for call in _judge_calls(group)]
            self._write(records)
        if place < self._config.console_fraction:
            _show(group, step, purpose, received_at - requested_at)

    def _write(self, records: list[dict[str, Any]]) -> None:
        try:
            self._lines.append(*records)
        except OSError as error:  # a full disk, say: the run is worth more than its log
            if not self._failed:
                log.warning(
                    "%s cannot be written (%s); the run goes on without what is missing there", CALLS_FILE, error
                )
            self._failed = True

    def _policy_call(self, group: Group, requested_at: float, received_at: float) -> dict[str, Any]:
        prompt = group.sample.prompt
        scores = group.scores or [Score(value=None)] * len(group.branches)
        versions = {span.version for branch in group.branches for span in branch.weight_versions}
        return {
            "kind": "policy",
            **_times(requested_at, received_at - requested_at),
            "model": self._model,
            "weight_versions": sorted(versions),
            **({"prompt": prompt} if isinstance(prompt, str) else {"messages": [dict(turn) for turn in prompt]}),
            "prompt_tokens": len(group.prompt_ids),
            "answers": [_answer(branch, score) for branch, score in zip(group.branches, scores, strict=True)],
        }


def _answer(branch: Branch, score: Score) -> dict[str, Any]:
    return {
        "text": branch.text,
        "finish_reason": branch.finish_reason,
        "tokens": len(branch.token_ids),
        "reward": score.value,
        "parts": dict(score.parts),
    }


def _judge_calls(group: Group) -> Iterator[dict[str, Any]]:
    for index, score in enumerate(group.scores):
        for call in score.calls:
            yield {"kind": "judge", "branch": index, **_judge_call(call)}


def _judge_call(call: JudgeCall) -> dict[str, Any]:
    return {
        **_times(call.requested_at, call.latency_s),
        "endpoint": call.host,
        "model": call.model,
        "status": call.status,
        "messages": [dict(turn) for turn in call.messages],
        "answer": call.text,
        "finish_reason": call.finish_reason,
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
    }


def _times(requested_at: float, latency_s: float) -> dict[str, Any]:
    """Milliseconds since 1970, as chat logs have them."""
    return {
        "requested_at": round(1000 * requested_at),
        "received_at": round(1000 * (requested_at + latency_s)),
        "latency_s": round(latency_s, 3),
    }


def _show(group: Group, step: int, purpose: str, latency_s: float) -> None:
    """Print the first answer and its reward, as the file would have them."""
    score = group.scores[0] if group.scores else Score(value=None)
    num_judged = sum(len(score.calls) for score in group.scores)
    text = group.branches[0].text if group.branches else ""
    shown = public_text(text[:MAX_SHOWN] + (" ..." if len(text) > MAX_SHOWN else ""))
    reward = "missing" if score.value is None else f"{score.value:.3g}"
    rich.print(
        f"[dim]step {step} {purpose} {escape(group.sample.sample_id)}: {latency_s:.1f} s, {len(group.branches)} "
        f"answers, {num_judged} judge calls; reward of the first {reward}[/dim]\n{escape(shown)}"
    )
