"""A batch dealt out to ranks comes back as if one had computed it, and steps become metrics under the model's name."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from troupe.actors.trained import TrainedModel, file_rank, keep_ends
from troupe.actors.workers import Workers
from troupe.algorithms.packing import Batch
from troupe.config.models import PolicyConfig
from troupe.records import Branch, Group, Sample


class Arithmetic:
    """A rank whose outputs are its tokens' ids, and whose metrics count what it was given."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem
        self.given: list[Batch] = []

    def outputs(self, batch: Batch, *, plus: int = 0) -> torch.Tensor:
        self.given.append(batch)
        return batch.token_ids.float() + plus

    def update(self, minibatches: Sequence[Batch], *, objective: Any) -> list[dict[str, float]]:
        self.given += minibatches
        steps: list[dict[str, float]] = [
            {"loss": float(number), "time/x_s": 1.0} for number, _ in enumerate(minibatches)
        ]
        steps[-1]["last"] = 6.0
        return steps

    def damage(self, directory: str) -> str | None:
        return self.problem


class Ranks(Workers[Any]):
    """Ranks in this process, one after the other."""

    role = "policy"

    def __init__(self, *ranks: Arithmetic) -> None:
        self.ranks, self.size = ranks, len(ranks)

    def submit(self, rank: int, method: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_result(getattr(self.ranks[rank], method.__name__)(*args, **kwargs))
        return answer

    def shutdown(self) -> None:
        """Nothing to end."""


def model_of(*ranks: Arithmetic) -> TrainedModel[Any]:
    return TrainedModel(Ranks(*ranks), PolicyConfig(), name="policy")


def batch(*lengths: tuple[int, ...]) -> Batch:
    """Groups whose branches have these lengths, and tokens numbered through."""
    numbers = iter(range(10_000))
    groups = [
        Group(
            sample=Sample(sample_id=str(index), prompt="?"),
            prompt_ids=[1, 2],
            branches=[Branch(token_ids=[next(numbers) for _ in range(length)]) for length in branches],
        )
        for index, branches in enumerate(lengths)
    ]
    return Batch.from_groups(groups)


GROUPS = ((3, 1), (9,), (2, 2, 2), (1,), (5, 4))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_outputs_stand_in_the_batchs_order_whatever_the_number_of_ranks(size: int) -> None:
    ranks = [Arithmetic() for _ in range(size)]
    whole = batch(*GROUPS).with_columns(advantages=torch.ones(29))
    assert model_of(*ranks).outputs(whole, plus=3).tolist() == [float(number + 3) for number in range(29)]
    given = [shard for rank in ranks for shard in rank.given]
    assert sum(shard.num_groups for shard in given) == 5  # none twice; with more ranks than groups some have none
    assert all(shard.columns == {} for shard in given)  # a forward pass needs none


def test_a_step_gives_every_rank_its_shard_of_every_minibatch_and_the_mean_of_the_metrics() -> None:
    ranks = [Arithmetic(), Arithmetic()]
    minibatches = [batch((4,), (4,)).with_columns(loss_weights=torch.ones(8)) for _ in range(3)]
    metrics = model_of(*ranks).update(minibatches, object())  # type: ignore[arg-type]
    # Losses 0, 1 and 2; what one step alone reports counts as 0 in the others: 6 / 3.
    assert metrics == {"policy/loss": 1.0, "policy/last": 2.0, "time/x_s": 1.0}
    for rank in ranks:
        assert [shard.num_tokens for shard in rank.given] == [4, 4, 4]
        assert all("loss_weights" in shard.columns for shard in rank.given)


def test_the_damage_that_one_rank_found_is_that_of_the_checkpoint() -> None:
    assert model_of(Arithmetic(), Arithmetic()).damage(Path("x")) is None
    assert model_of(Arithmetic(), Arithmetic("shard 1 is cut")).damage(Path("x")) == "shard 1 is cut"


def test_every_file_of_a_checkpoint_is_read_by_one_rank_and_shards_by_their_owners() -> None:
    assert file_rank("trainer_state/state/zero_pp_rank_3_mp_rank_00_optim_states.pt") == 3
    names = [f"model-{number:05d}-of-00009.safetensors" for number in range(9)]
    shares = [{name for name in names if file_rank(name) % 2 == rank} for rank in range(2)]
    assert shares[0] | shares[1] == set(names)
    assert not shares[0] & shares[1]


class Generation:
    """As transformers keeps it."""

    def __init__(self, eos_token_id: int | list[int] | None) -> None:
        self.eos_token_id = eos_token_id


class Exported:
    def __init__(self, eos_token_id: int | list[int] | None) -> None:
        self.generation_config = Generation(eos_token_id)


@pytest.mark.parametrize(
    ("own", "stops", "kept"),
    [(None, (5,), [5]), (5, (5,), 5), (5, (7, 5), [5, 7]), ([5, 6], (6,), [5, 6]), ([5], (7, 8), [5, 7, 8])],
)
def test_engines_are_told_every_token_that_ends_an_answer_and_those_that_they_knew(
    own: Any, stops: Any, kept: Any
) -> None:
    model = Exported(own)
    keep_ends(model, stops)
    assert model.generation_config.eos_token_id == kept
    keep_ends(object(), stops)  # a model that does not generate
