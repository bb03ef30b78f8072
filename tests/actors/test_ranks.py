"""Two ZeRO-3 ranks are one trainer: same gradient, same weights, whichever rank has more rows; and what one saved the
other goes on with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.actors.small import ragged, random_group, with_targets, write_model
from tests.actors.test_engine import assert_same_weights, engine, weights_of
from tests.actors.test_layout import assert_same_state, stored
from troupe.actors.placement import Cluster
from troupe.actors.policy import Policy, PolicyWorker
from troupe.algorithms.objective import PolicyObjective
from troupe.algorithms.packing import Batch, pack
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.models import PolicyConfig
from troupe.records import Group

OBJECTIVE = PolicyObjective(AlgorithmConfig(clip_low=0.5, clip_high=50.0))
BETA1 = 0.9
ROW_TOKENS = 40
VOCAB = 300


class ObservedWorker(PolicyWorker):
    """A policy rank that can be asked for the gradient it has just used."""

    def gradient(self) -> torch.Tensor:
        """The first step's: AdamW's first moment is then (1 - beta1) times it. A collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        parameters = self._engine.packed.parameters()
        return torch.cat([safe_get_full_optimizer_state(p, "exp_avg").flatten() for p in parameters]) / (1 - BETA1)

    def shared_memory(self) -> list[str]:
        """Names in shared memory that would outlive this process."""
        return [path.name for path in Path("/dev/shm").glob(f"deepspeed*_{os.environ['MASTER_PORT']}_*")]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    # MLP matrices of 256 x 768 elements: ZeRO-3 leaves up to 100,000 whole on every rank.
    return write_model(tmp_path_factory.mktemp("ranks"), tied=False, hidden_size=256)


def lopsided() -> list[Group]:
    """One group that is one long row on one rank, and eight on the other of which no two fit into a row."""
    small = [random_group(12, [9, 9], vocab=VOCAB, name=str(index)) for index in range(8)]
    return [*small[:3], random_group(30, [60, 60, 60, 40], vocab=VOCAB), *small[3:]]


def one_group() -> list[Group]:
    """Nothing at all for the second rank."""
    return [random_group(9, [4, 4], vocab=VOCAB)]


CASES = {"balanced": lambda: ragged(VOCAB), "lopsided": lopsided, "one group": one_group}


SETTINGS = {"zero_stage": 3, "precision": "fp32", "learning_rate": 1e-3, "schedule": "constant"}


def steps_of(
    cluster: Cluster, model_path: str, ranks: int, directory: Path, other: Path | None = None
) -> dict[str, tuple]:
    """(log-probabilities before, metrics, gradient or None, weights after) of a step on each case in turn.

    The gradient is the first step's alone: later moments mix. `resumed` is a further step from the state that was saved
    then, here or in `other`.
    """
    config = PolicyConfig(num_ranks=ranks, row_tokens=ROW_TOKENS, **SETTINGS)
    arguments = [{"rank": rank, "world_size": ranks} for rank in range(ranks)]
    policy = Policy(cluster.workers(ObservedWorker, arguments, role="policy"), config)
    results = {}
    try:
        policy.start(model_path, total_steps=10, seed=0)
        policy.ready()
        assert policy.workers.call(ObservedWorker.shared_memory) == [[]] * ranks
        for name, groups in CASES.items():
            logprobs = policy.logprobs(Batch.from_groups(groups()), temperature=0.8)
            metrics = policy.update([with_targets(groups())], OBJECTIVE)
            gradient = policy.workers.call(ObservedWorker.gradient)[0] if not results else None
            policy.save(str(directory / name), trainer_state=False)
            weights = load_file(directory / name / "model.safetensors")
            results[name] = (logprobs, metrics, gradient, weights)
        policy.save(str(directory))
        policy.load(str(other or directory))
        batch = with_targets(ragged(VOCAB))
        results["resumed"] = (policy.logprobs(batch), policy.update([batch], OBJECTIVE))
    finally:
        policy.shutdown()
    return results


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where one rank saves, and two."""
    return tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def results(cluster: Cluster, model_path: str, directories: tuple[Path, Path]) -> Sequence[dict[str, tuple]]:
    """The same steps with one rank and with two."""
    one, two = directories
    return [steps_of(cluster, model_path, 1, one), steps_of(cluster, model_path, 2, two, one)]


def rows_by_rank(groups: list[Group]) -> list[int]:
    batch = Batch.from_groups(groups)
    return [len(pack(batch.select(shard), ROW_TOKENS)) if shard else 0 for shard in batch.split(2)]


def test_the_cases_give_the_ranks_different_numbers_of_rows() -> None:
    # Shards are balanced by tokens: 30 + 220 = 250 in one group against 8 x (12 + 18) = 240 in eight, 40 to a row.
    assert {name: rows_by_rank(groups()) for name, groups in CASES.items()} == {
        "balanced": [2, 2],
        "lopsided": [1, 8],
        "one group": [1, 0],
    }


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_read_the_same_logprobs_as_one(results: Sequence[dict[str, tuple]], case: str) -> None:
    one, two = (result[case][0] for result in results)
    assert torch.count_nonzero(one) == len(one)
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)


def test_two_ranks_compute_the_same_gradient_as_one(results: Sequence[dict[str, tuple]]) -> None:
    one, two = (result[next(iter(CASES))][2] for result in results)
    assert (two - one).norm() <= 1e-5 * one.norm()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_end_with_the_same_weights_as_one(results: Sequence[dict[str, tuple]], case: str) -> None:
    (_, one_metrics, _, one), (_, two_metrics, _, two) = (result[case] for result in results)
    assert two_metrics == pytest.approx(one_metrics, rel=1e-4, abs=1e-6)
    assert one.keys() == two.keys()
    one_flat, two_flat = (torch.cat([weights[name].flatten() for name in one]) for weights in (one, two))
    assert (two_flat - one_flat).norm() <= 1e-5 * one_flat.norm()


def test_two_ranks_go_on_from_what_one_saved(results: Sequence[dict[str, tuple]]) -> None:
    (one, one_metrics), (two, two_metrics) = (result["resumed"] for result in results)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    assert two_metrics == pytest.approx(one_metrics, rel=1e-4, abs=1e-6)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_one_rank_goes_on_from_what_two_saved_to_the_bit(
    results: Sequence[dict[str, tuple]],
    directories: tuple[Path, Path],
    model_path: str,
    tmp_path: Path,
    zero_stage: int,
) -> None:
    with engine(model_path, **{**SETTINGS, "zero_stage": zero_stage}) as built:
        built.load(str(directories[1]))
        assert_same_weights(weights_of(built), results[1]["one group"][3])
        built.save(str(tmp_path))
        assert_same_state(stored(built, tmp_path), stored(built, directories[1]))
        assert built.schedule.last_epoch == len(CASES)
