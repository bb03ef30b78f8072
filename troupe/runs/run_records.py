"""What a group looks like in the files of a run: a line of rollouts.jsonl, a row of answers.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from troupe.chat.texts import turn_text
from troupe.records import Branch, Group, Score
from troupe.secrets import public_text

Decode = Callable[[Sequence[int]], str]
"""Token ids -> their text, special tokens included."""
CHARACTER_TOKENS = 4
"""Most tokens that write one character, a byte each."""


def answer_row(group: Group, decode: Decode | None = None) -> dict[str, Any]:
    """Return the row of `Run.log_answers` for an evaluated group: its first branch and that branch's parts.

    With `decode` an answer of several turns has them, as in `group_record`.
    """
    score, branch = group.scores[0] if group.scores else None, group.branches[0]
    turns = {} if decode is None or not branch.turns else {"turns": _turns(branch, decode)}
    return {
        "sample_id": group.sample.sample_id,
        "prompt": _prompt_text(group),
        "gold": group.sample.gold,
        "text": branch.text,
        "metrics": dict(score.parts) if score is not None else {},
        **turns,
    }


def group_record(group: Group, decode: Decode | None = None) -> dict[str, Any]:
    """Return the line of `Run.log_rollouts` for a sampled group: every branch with its text, score and parts.

    With `decode` each has its turns, too, and the model's their tokens with log-probabilities.
    """
    scores = group.scores or [Score(value=None)] * len(group.branches)
    branches = [
        {
            "text": branch.text,
            "score": score.value,
            "parts": dict(score.parts),
            "finish_reason": branch.finish_reason,
            "num_tokens": len(branch.token_ids),
            **({} if decode is None else {"turns": _turns(branch, decode)}),
        }
        for branch, score in zip(group.branches, scores, strict=True)
    ]
    sample = group.sample
    return {"sample_id": sample.sample_id, "prompt": _prompt_text(group), "gold": sample.gold, "branches": branches}


def _turns(branch: Branch, decode: Decode) -> list[dict[str, Any]]:
    """Return each turn's role, whether it is trained, and its text; of a trained one by tokens."""
    turns: list[dict[str, Any]] = []
    start = 0
    for role, count in branch.turns or [("assistant", len(branch.token_ids))]:
        ids, logprobs = branch.token_ids[start : start + count], (branch.logprobs or ())[start : start + count]
        is_trained = branch.loss_mask is None or any(branch.loss_mask[start : start + count])
        texts = token_texts(ids, decode) if is_trained and logprobs else [decode(ids)]
        text = "".join(texts)
        turn: dict[str, Any] = {"role": role, "trained": is_trained}
        # A secret that several tokens spell would be found in none of them.
        if is_trained and logprobs and public_text(text) == text:
            turns.append({**turn, "tokens": texts, "logprobs": [round(value, 2) + 0.0 for value in logprobs]})
        else:
            turns.append({**turn, "text": text})
        start += count
    return turns


def token_texts(ids: Sequence[int], decode: Decode) -> list[str]:
    """Return the text of each token, which joined are the text of all.

    Of several tokens that write one character the last has it, and the others nothing.
    """
    texts: list[str] = []
    begin = end = 0  # the last text is that of [begin, end); some tokenizers write a token by what is before it
    for position in range(1, len(ids) + 1):
        before, whole = decode(ids[begin:end]), decode(ids[begin:position])
        is_part = whole.endswith("\ufffd") and position < len(ids) and position - end < CHARACTER_TOKENS
        texts.append("" if is_part else whole[len(before) :])
        if not is_part:
            begin, end = end, position
    return texts


def _prompt_text(group: Group) -> str:
    prompt = group.sample.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {turn_text(message)}" for message in prompt)
