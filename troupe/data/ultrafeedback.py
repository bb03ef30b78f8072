"""Prompts with a better and a worse answer: HuggingFaceH4/ultrafeedback_binarized (Cui et al. 2023, 2310.01377).

`chosen` and `rejected` are message lists that include the prompt; it is taken from them, once, and their last turns
are the answers. The better one is also the gold answer and the demonstration.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from troupe.config.published_data import UltraFeedbackConfig
from troupe.data.dataset import DataSet, Dropped
from troupe.data.lines import Row
from troupe.data.messages import messages_of, num_chars, part
from troupe.data.published import load_published
from troupe.errors import DataError
from troupe.records import Message, Sample


def load_ultrafeedback(config: UltraFeedbackConfig) -> DataSet:
    return load_published(config, partial(_sample, config), train="train_prefs", heldout="test_prefs")


def _sample(config: UltraFeedbackConfig, sample_id: str, where: str, row: Row) -> Sample | Dropped:
    prompt, chosen = _side(row, "chosen", where)
    rejected_prompt, rejected = _side(row, "rejected", where)
    if prompt != rejected_prompt:
        raise DataError(
            f"{where}: 'chosen' and 'rejected' must begin with the same prompt; only their last turns differ"
        )
    if not chosen.strip() or not rejected.strip():
        return Dropped("empty_answers")
    if config.max_prompt_chars is not None and num_chars(prompt) > config.max_prompt_chars:
        return Dropped("long_prompts")
    return Sample(
        sample_id=sample_id,
        prompt=prompt,
        gold=chosen,
        fields={
            "answers": [chosen, rejected],
            "demonstration": chosen,
            "prompt_id": row.get("prompt_id"),
            **_scores(config, where, row),
        },
    )


def _side(row: Row, name: str, where: str) -> tuple[list[Message], str]:
    prompt, answer = part(messages_of(row, name, where))
    if not prompt or answer is None:
        raise DataError(f"{where}: {name!r} must hold the prompt's turns and end with an assistant's turn")
    return prompt, answer["content"] or ""


def _scores(config: UltraFeedbackConfig, where: str, row: Row) -> dict[str, Any]:
    scores: dict[str, Any] = {name: row.get(name) for name in ("score_chosen", "score_rejected")}
    if config.margin_scale is None:
        return scores
    for name, score in scores.items():
        if not isinstance(score, (int, float)):
            raise DataError(f"{where}: field {name!r} must be a number, got {score!r:.60}; or unset data.margin_scale")
    return {**scores, "margin": config.margin_scale * (scores["score_chosen"] - scores["score_rejected"])}
