"""A trainer that goes on at another ZeRO stage or in another precision is the same trainer: its weights, its moments,
its schedule. Other numbers of ranks are in test_ranks.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.actors.small import SMALL, ragged, with_targets, write_weights
from tests.actors.test_engine import assert_close, assert_same_weights, engine, weights_of
from troupe.actors.engine import Engine
from troupe.actors.layout import MOMENTS, WEIGHTS, Part, StoredTrainer, read_trainer, zero3_parts
from troupe.algorithms.objective import SupervisedObjective
from troupe.algorithms.packing import Batch
from troupe.errors import CheckpointError
from troupe.files import read_json

pytestmark = pytest.mark.usefixtures("one_rank")

EVERY_CHANGE = (0, 1, 0, 3, 1, 3, 2, 0)
"""ZeRO stages with each change between no ZeRO, one flat tensor (stages 1 and 2) and shares of parameters (3)."""
SETTINGS = {"schedule": "linear", "total_steps": 20, "weight_decay": 0.1}
LORA = {"rank": 4, "alpha": 8}
TRUNK = {"frozen_layers": 0.5, "keep_start": True}
OBJECTIVE = SupervisedObjective()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_weights(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_weights(SMALL, tmp_path_factory.mktemp("other"), seed=1)


def stored(built: Engine, directory: Path) -> StoredTrainer:
    """What an engine like `built` reads out of a checkpoint, whatever its layout."""
    state = directory / "trainer_state"
    return read_trainer(state / "state", read_json(state / "layout.json"), built._trained_sizes())


def whole(found: StoredTrainer, name: str, key: str) -> torch.Tensor:
    return found.stretch(name, key, 0, sum(piece[key].numel() for piece in found.pieces[name]))


def trained(found: StoredTrainer) -> set[str]:
    return {name for name, pieces in found.pieces.items() if MOMENTS[0] in pieces[0]}


def assert_same_state(one: StoredTrainer, other: StoredTrainer) -> None:
    assert (trained(one), one.steps) == (trained(other), other.steps)
    for name in trained(one):
        for key in (WEIGHTS, *MOMENTS):
            assert torch.equal(whole(one, name, key), whole(other, name, key)), (name, key)
    assert one.counts["global_steps"] == other.counts["global_steps"]


def live_states(built: Engine) -> dict[str, Sequence[torch.Tensor]]:
    """Weights and moments by name, as DeepSpeed's accessors and AdamW give them."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    trained = {name: each for name, each in built.packed.named_parameters() if each.requires_grad}
    if built.config.zero_stage > 0:
        return {
            name: [safe_get_full_fp32_param(each), *(safe_get_full_optimizer_state(each, key) for key in MOMENTS)]
            for name, each in trained.items()
        }
    adam = built.engine.basic_optimizer
    masters = dict(zip(trained, adam.param_groups[0]["params"], strict=True))
    return {name: [master, *(adam.state[master][key] for key in MOMENTS)] for name, master in masters.items()}


def test_zero3_gives_each_rank_an_equal_share_of_each_parameter() -> None:
    # Of 5 elements shares of 3, of 1 shares of 1: what is beyond the end is padding.
    sizes = {"a": 5, "b": 1, "c": 4}
    assert zero3_parts(sizes, 0, 2) == [Part("a", 0, 0, 3), Part("b", 3, 0, 1), Part("c", 4, 0, 2)]
    assert zero3_parts(sizes, 1, 2) == [Part("a", 0, 3, 2), Part("b", 3, 1, 0), Part("c", 4, 2, 2)]


def test_a_stretch_of_a_parameter_is_put_together_from_the_pieces_that_hold_it() -> None:
    pieces = [{WEIGHTS: torch.arange(0.0, 3.0)}, {WEIGHTS: torch.arange(3.0, 5.0)}, {WEIGHTS: torch.arange(5.0, 9.0)}]
    found = StoredTrainer(pieces={"a": pieces}, steps=0, counts={})
    for start in range(9):
        for size in range(9 - start):
            assert found.stretch("a", WEIGHTS, start, size).tolist() == list(range(start, start + size))


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_what_is_read_by_name_is_what_the_trainer_has(
    model_path: str, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    with engine(model_path, zero_stage=zero_stage, precision=precision) as built:
        for _ in range(2):
            built.update(with_targets(ragged()), OBJECTIVE)
        live = {name: [tensor.detach().clone() for tensor in states] for name, states in live_states(built).items()}
        (steps,) = {float(state["step"]) for state in built.engine.basic_optimizer.state.values()}
        built.save(str(tmp_path))
        found = stored(built, tmp_path)
    assert (found.steps, found.counts["global_steps"], trained(found)) == (steps, 2, live.keys())
    for name, states in live.items():
        for key, tensor in zip((WEIGHTS, *MOMENTS), states, strict=True):
            assert torch.equal(whole(found, name, key), tensor.flatten().float()), (name, key)


def test_a_trainer_that_changes_its_stage_at_every_step_learns_as_one_that_keeps_it(
    model_path: str, tmp_path: Path
) -> None:
    batches = [with_targets(ragged()[: 2 + index % 4]) for index in range(len(EVERY_CHANGE))]
    with engine(model_path, zero_stage=0, **SETTINGS) as whole:
        expected = [whole.update(batch, OBJECTIVE) for batch in batches]
    for step, (zero_stage, batch) in enumerate(zip(EVERY_CHANGE, batches, strict=True)):
        with engine(model_path, zero_stage=zero_stage, **SETTINGS) as built:
            if step:
                built.load(str(tmp_path / f"{step - 1}"))
                built.save(str(tmp_path / "loaded"))
                assert_same_state(stored(built, tmp_path / "loaded"), stored(built, tmp_path / f"{step - 1}"))
            metrics = built.update(batch, OBJECTIVE)
            built.save(str(tmp_path / f"{step}"))
        assert metrics["learning_rate"] == expected[step]["learning_rate"]
        assert metrics["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"zero_stage": 1}, {"zero_stage": 3, "precision": "bf16"}),
        ({"zero_stage": 3, "precision": "bf16"}, {"zero_stage": 0}),
        ({"zero_stage": 0, "precision": "bf16"}, {"zero_stage": 2, "precision": "bf16"}),
        ({"zero_stage": 3, "lora": LORA}, {"zero_stage": 1, "lora": LORA}),
        ({"zero_stage": 1, **TRUNK}, {"zero_stage": 3, **TRUNK}),
        ({"zero_stage": 3, **TRUNK}, {"zero_stage": 0, **TRUNK}),
    ],
)
def test_weights_and_moments_are_the_same_to_the_bit_in_another_precision_with_adapters_and_frozen_layers(
    model_path: str, other_path: str, tmp_path: Path, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    batch = Batch.from_groups(ragged())
    with engine(model_path, **before) as built:
        for _ in range(2):
            built.update(with_targets(ragged()), OBJECTIVE)
        expected = built.outputs(batch)
        with built.at_start() if "keep_start" in before else contextlib.nullcontext():
            start = built.outputs(batch)
        built.save(str(tmp_path / "before"))
    # Everything is the checkpoint's, whatever the model that another machine starts from.
    with engine(other_path, **after) as built:
        assert (built.outputs(batch) - expected).abs().max() > 1
        built.load(str(tmp_path / "before"))
        built.save(str(tmp_path / "after"))
        assert_same_state(stored(built, tmp_path / "before"), stored(built, tmp_path / "after"))
        # The model computes with them: to the rounding of sums in fp32, to that of the weights in bf16.
        exact = before.get("precision") == after.get("precision")
        assert_close(built.outputs(batch), expected, 1e-5 if exact else 0.02)
        with built.at_start() if "keep_start" in after else contextlib.nullcontext():
            assert_close(built.outputs(batch), start, 1e-5 if exact else 0.02)
        built.update(with_targets(ragged()), OBJECTIVE)


def test_a_trainer_goes_back_to_a_checkpoint_of_another_layout_also_after_further_steps(
    model_path: str, tmp_path: Path
) -> None:
    with engine(model_path, zero_stage=3) as other:
        other.update(with_targets(ragged()), OBJECTIVE)
        other.save(str(tmp_path))
        expected = weights_of(other)
    with engine(model_path, zero_stage=1) as built:
        for _ in range(2):
            built.update(with_targets(ragged()[:2]), OBJECTIVE)
        built.load(str(tmp_path))
        assert_same_weights(weights_of(built), expected)
        first = built.update(with_targets(ragged()), OBJECTIVE)
        built.load(str(tmp_path))
        assert built.update(with_targets(ragged()), OBJECTIVE) == first


def test_a_state_from_before_the_first_step_is_one_without_moments(model_path: str, tmp_path: Path) -> None:
    with engine(model_path, zero_stage=1) as built:
        built.save(str(tmp_path))
        expected = built.update(with_targets(ragged()), OBJECTIVE)
    with engine(model_path, zero_stage=3) as built:
        built.load(str(tmp_path))
        metrics = built.update(with_targets(ragged()), OBJECTIVE)
        assert metrics == pytest.approx(expected, rel=1e-5)


def test_the_state_of_other_weights_is_refused_by_the_first_that_differs(model_path: str, tmp_path: Path) -> None:
    with engine(model_path, zero_stage=1, lora=LORA) as built:
        built.save(str(tmp_path))
    wider = {"rank": 8, "alpha": 8}
    with engine(model_path, zero_stage=3, lora=wider) as built, pytest.raises(CheckpointError) as raised:
        built.load(str(tmp_path))
    assert "holds the trainer state of other weights (model.base_model" in str(raised.value)
    assert "resume with the model, the adapter and the frozen layers that it was begun with" in str(raised.value)
