"""What is too long is said at the start with the remedy, and a run that could use nothing ends there."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.actors.small import write_model
from troupe.config.grpo import GRPOConfig
from troupe.config.models import ScratchModelConfig
from troupe.errors import DataError
from troupe.jobs.train_grpo import prepare_models
from troupe.records import Sample
from troupe.training.lengths import Limit, count_left_out
from troupe.training.scratch import train_tokenizer
from troupe.training.warm_start import _demonstration_batches

LIMIT = Limit(tokens=10, field="max_length")


def samples(*lengths: int) -> list[Sample]:
    return [Sample(sample_id=str(n), prompt="x", fields={"tokens": tokens}) for n, tokens in enumerate(lengths)]


def excess(sample: Sample) -> int | None:
    tokens: int = sample.fields["tokens"]
    return tokens if tokens > LIMIT.tokens else None


def test_what_is_left_out_is_counted_with_the_longest_and_the_remedy(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        assert count_left_out("training samples of x", samples(3, 30, 10, 11), excess, LIMIT, enough=9) == 2
        assert count_left_out("training samples of x", samples(3, 10), excess, LIMIT, enough=9) == 0
    (record,) = caplog.records
    assert record.message == (
        "2 of 4 training samples of x are left out: longer than max_length (10), the longest with 30 tokens; raise "
        "max_length to use them"
    )


def test_no_more_than_enough_are_read_unless_none_of_them_fits(caplog: Any) -> None:
    read: list[str] = []

    def noted(sample: Sample) -> int | None:
        read.append(sample.sample_id)
        return excess(sample)

    with caplog.at_level(logging.WARNING):
        count_left_out("prompts", samples(30, 3, 3, 30), noted, LIMIT, enough=2)
        assert read == ["0", "1"]
        assert "1 of the first 2 prompts are left out" in caplog.text
        read.clear()
        count_left_out("prompts", samples(30, 30, 30, 3, 3), noted, LIMIT, enough=2)
    assert read == ["0", "1", "2", "3"]


def test_where_none_fits_the_run_ends_with_the_shortest_that_would() -> None:
    with pytest.raises(
        DataError, match=r"none of the 3 prompts can be used: .* max_length \(10\), the shortest with 11"
    ):
        count_left_out("prompts", samples(30, 11, 12), excess, LIMIT, enough=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("lengths") / "model", tied=True)


def rl(tmp_path: Path, model: str, **rollout: Any) -> GRPOConfig:
    rows = [{"prompt": "word " * (4 if n % 4 else 60), "answer": str(n)} for n in range(12)]
    for name, part in (("train", rows), ("heldout", rows[:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    paths = {"path": str(tmp_path / "train.jsonl"), "heldout_path": str(tmp_path / "heldout.jsonl")}
    return GRPOConfig(
        model={"type": "pretrained", "path": model},
        data={"type": "jsonl", **paths, "gold_field": "answer"},
        rollout=rollout,
    )


def test_prompts_that_rollouts_and_evaluations_would_drop_are_said_before_anything_starts(
    tmp_path: Path, model: str, caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare_models(rl(tmp_path, model, max_prompt_tokens=40))
    assert r"3 of 12 training prompts of jsonl are left out: longer than rollout.max_prompt_tokens (40)" in caplog.text
    assert "2 of 5 held-out prompts of jsonl are left out" in caplog.text
    with pytest.raises(DataError, match=r"3 training prompts are longer .* or set rollout\.long_prompts: drop"):
        prepare_models(rl(tmp_path, model, max_prompt_tokens=40, long_prompts="refuse"))


def test_a_run_whose_prompts_are_all_too_long_ends_before_anything_starts(tmp_path: Path, model: str) -> None:
    with pytest.raises(
        DataError, match=r"none of the 12 training prompts of jsonl can be used: .* \(1\), the shortest"
    ):
        prepare_models(rl(tmp_path, model, max_prompt_tokens=1))


def test_a_warm_start_goes_on_with_the_demonstrations_that_fit(caplog: Any) -> None:
    """5 of 40 fit, and a batch of 64 draws every one many times; by chance of order nothing ends it."""
    texts = ["4" if n % 8 == 0 else "and one more " * 30 for n in range(40)]
    found = [Sample(sample_id=f"d/{n}", prompt="2+2?", fields={"demonstration": text}) for n, text in enumerate(texts)]
    tokenizer = train_tokenizer(texts, vocab_size=300, max_length=64)
    config = ScratchModelConfig(max_length=64)
    with caplog.at_level(logging.WARNING):
        batches = _demonstration_batches(found, tokenizer, config, prompt_weight=0.0, size=64, seed=0)
        assert next(batches).num_groups == 64
    assert "35 of 40 demonstrations of the warm start are left out: longer than model.max_length (64)" in caplog.text
