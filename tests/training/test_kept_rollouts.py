"""The groups of a step come back from the disk as they were, and nothing but groups does."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch

from troupe.records import Branch, Group, JudgeCall, Sample, Score, WeightSpan
from troupe.training.kept_rollouts import Kept, KeptRollouts
from troupe.training.rollouts import Rollout


def kept(step: int) -> Kept:
    call = JudgeCall(
        host="h", model="m", messages=[{"role": "user", "content": "?"}], status=200, requested_at=1.5, latency_s=0.1
    )
    branch = Branch(
        token_ids=[3, step], text="né\ud83d\ude00", loss_mask=[True, False], logprobs=[-0.1, -1 / 3], finish_reason="length",
        weight_versions=(WeightSpan(version=step, start=0, end=2),), outcome=Score(value=0.1),
    )  # fmt: skip
    sample = Sample(
        sample_id="a/1",
        prompt=[{"role": "user", "content": "hi", "name": "x"}],
        gold="8",
        fields={"tests": [{"input": 1}], "source": "a"},
    )
    group = Group(
        sample=sample,
        prompt_ids=[1, 2],
        branches=[branch],
        scores=[Score(value=None, parts={"a": 0.3}, calls=(call,), reason="late")],
    )
    return Kept(
        rollout=Rollout(groups=[group], metrics={"reward/mean": 1 / 3}), place={"position": 4 * step, "samples": 9}
    )


def test_what_was_kept_comes_back_bit_by_bit_and_a_gap_ends_it(tmp_path: Path) -> None:
    store = KeptRollouts(tmp_path)
    assert store.after(0) == {}
    for step in (1, 2, 4):
        store.keep(step, kept(step))
    assert store.after(0) == {1: kept(1), 2: kept(2)}
    assert store.after(3) == {4: kept(4)}
    assert store.get(1).rollout.groups[0].scores[0].reason == "late"  # type: ignore[union-attr]
    store.forget(up_to=2)
    assert store.after(0) == {}
    assert store.after(3) == {4: kept(4)}
    store.forget(up_to=4)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_a_step_that_is_sampled_again_and_no_code_runs(tmp_path: Path) -> None:
    store = KeptRollouts(tmp_path)
    for step in (1, 2):
        store.keep(step, kept(step))
    (file, other) = sorted((tmp_path / "kept_rollouts").iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    assert store.after(0) == {}

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"rollout": Evil(), "place": {}}, other)
    assert store.after(1) == {}
    other.write_bytes(pickle.dumps({"rollout": Evil()}, protocol=2))
    assert store.after(1) == {}
    assert not (tmp_path / "ran").exists()
