"""Log-probabilities of a reference are computed once, found again, and never those of another model, tokenizer or
answer.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from troupe.algorithms.packing import Batch
from troupe.errors import CheckpointError
from troupe.records import Branch, Group, Sample
from troupe.training.reference_cache import GROUPS_PER_READ, ReferenceCache


def groups(count: int = 3, *, first: int = 0, tokens: int = 9) -> list[Group]:
    return [
        Group(
            sample=Sample(sample_id=f"pair/{index}", prompt=""),
            prompt_ids=[1, 2],
            branches=[Branch(token_ids=[index + 3] * (1 + index % 3)), Branch(token_ids=[tokens, 4])],
        )
        for index in range(first, first + count)
    ]


class Reader:
    """A model whose log-probability of a token is a fraction of its id, and that counts what it reads."""

    def __init__(self) -> None:
        self.groups = 0

    def __call__(self, batch: Batch) -> torch.Tensor:
        self.groups += batch.num_groups
        return -batch.token_ids.float() / 7


def cache(path: Path, *, model: str = "aaaa", tokenizer: str = "bbbb") -> ReferenceCache:
    return ReferenceCache(path / "runs" / "reference.safetensors", model=model, tokenizer=tokenizer)


def test_each_group_is_computed_once_and_found_in_any_order_and_choice(tmp_path: Path) -> None:
    read, every = Reader(), groups(GROUPS_PER_READ + 5)
    filled = cache(tmp_path)
    assert filled.fill(every, read) == len(every)
    assert filled.fill(every, read) == 0
    chosen = [every[40], every[2], every[66]]
    expected = -Batch.from_groups(chosen).token_ids.float() / 7
    assert torch.equal(filled.logprobs(chosen), expected)
    assert read.groups == len(every)


def test_another_process_finds_them_in_the_file_and_adds_only_what_is_missing(tmp_path: Path) -> None:
    cache(tmp_path).fill(groups(3), Reader())
    read, again = Reader(), cache(tmp_path)
    assert again.fill(groups(5), read) == 2
    assert read.groups == 2
    third = cache(tmp_path)
    assert third.fill(groups(5), read) == 0
    assert torch.equal(third.logprobs(groups(5)), -Batch.from_groups(groups(5)).token_ids.float() / 7)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["reference.safetensors"]  # nothing half-written


@pytest.mark.parametrize(
    ("others", "found", "wanted"),
    [
        ({"model": "cccc"}, "'model': 'aaaa'", "'model': 'cccc'"),
        ({"tokenizer": "dddd"}, "'tokenizer': 'bbbb'", "'tokenizer': 'dddd'"),
    ],
)
def test_a_file_of_another_reference_is_refused_by_naming_both(
    tmp_path: Path, others: dict[str, str], found: str, wanted: str
) -> None:
    cache(tmp_path).fill(groups(), Reader())
    with pytest.raises(CheckpointError) as error:
        cache(tmp_path, **others)
    told = str(error.value)
    assert re.search(rf"{found}.*{wanted}", told)
    assert "reference.safetensors" in told
    assert "remove it, or name another reference_cache" in told


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "runs").mkdir()
    save_file({"weight": torch.zeros(3)}, tmp_path / "runs" / "reference.safetensors")
    with pytest.raises(CheckpointError, match="holds log-probabilities of"):
        cache(tmp_path)


def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "reference.safetensors").write_text("half a fi")
    with pytest.raises(CheckpointError, match=r"cannot be read .*; remove it, or name another reference_cache"):
        cache(tmp_path)


def test_other_answers_under_the_same_id_are_refused_by_naming_the_sample_and_both_hashes(tmp_path: Path) -> None:
    cache(tmp_path).fill(groups(), Reader())
    other = cache(tmp_path)
    changed = groups(tokens=8)
    assert other.fill(changed, Reader()) == 0
    with pytest.raises(
        CheckpointError, match=r"of other answers for pair/0 \([0-9a-f]{16} in the file, [0-9a-f]{16} now; .*remove it"
    ):
        other.logprobs(changed)
