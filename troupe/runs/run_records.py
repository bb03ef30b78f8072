"""What a group looks like in the files of a run: a line of rollouts.jsonl, a row of answers.jsonl."""

from __future__ import annotations

from typing import Any

from troupe.chat.texts import turn_text
from troupe.records import Group, Score


def answer_row(group: Group) -> dict[str, Any]:
    """Return the row of `Run.log_answers` for an evaluated group: its first branch and that branch's parts."""
    score = group.scores[0] if group.scores else None
    return {
        "sample_id": group.sample.sample_id,
        "prompt": _prompt_text(group),
        "gold": group.sample.gold,
        "text": group.branches[0].text,
        "metrics": dict(score.parts) if score is not None else {},
    }


def group_record(group: Group) -> dict[str, Any]:
    """Return the line of `Run.log_rollouts` for a sampled group: every branch with its text, score and parts."""
    scores = group.scores or [Score(value=None)] * len(group.branches)
    branches = [
        {
            "text": branch.text,
            "score": score.value,
            "parts": dict(score.parts),
            "finish_reason": branch.finish_reason,
            "num_tokens": len(branch.token_ids),
        }
        for branch, score in zip(group.branches, scores, strict=True)
    ]
    sample = group.sample
    return {"sample_id": sample.sample_id, "prompt": _prompt_text(group), "gold": sample.gold, "branches": branches}


def _prompt_text(group: Group) -> str:
    prompt = group.sample.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {turn_text(message)}" for message in prompt)
