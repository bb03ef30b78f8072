"""The training engine is plain AdamW on plain log-probabilities, however the work is cut up and sharded."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config

from tests.actors.small import SMALL, ragged, random_group, with_targets, write_weights
from troupe.actors.engine import Engine
from troupe.actors.trainer_state import gathered_state
from troupe.algorithms.loading import load_model
from troupe.algorithms.logprobs import PackedModel
from troupe.algorithms.objective import PolicyObjective, SupervisedObjective
from troupe.algorithms.packing import Batch, pack
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.models import LoraConfig, SFTEngineConfig
from troupe.errors import CheckpointError, ConfigError, NumericalError
from troupe.records import Group

pytestmark = pytest.mark.usefixtures("one_rank")

OBJECTIVE = PolicyObjective(AlgorithmConfig(clip_low=0.5, clip_high=50.0))
BETA1 = 0.9


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_weights(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def equal_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Batch, torch.Tensor]:
    """(a small model, a batch of 64 equal rows, 64 times the gradient of one of them in bf16)."""
    config = Qwen2Config(**{**SMALL.to_dict(), "vocab_size": 64, "hidden_size": 32})
    path = write_weights(config, tmp_path_factory.mktemp("tiny"))
    batch = with_targets([random_group(4, [6], vocab=64)] * 64)
    row, *others = pack(batch, 16)
    assert len(others) == 63
    model = PackedModel(load_model(path, "bf16"))
    (-(model(row)[0] * batch["loss_weights"][row.token_index]).sum()).backward()
    return path, batch, 64 * torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).float()


@contextlib.contextmanager
def engine(path: str, *, total_steps: int = 10, keep_start: bool = False, **settings: Any) -> Iterator[Engine]:
    defaults = {"precision": "fp32", "zero_stage": 0, "learning_rate": 1e-3, "schedule": "constant"}
    built = Engine(path, SFTEngineConfig(**{**defaults, **settings}), total_steps=total_steps, keep_start=keep_start)
    try:
        yield built
    finally:
        built.engine.destroy()


def weights_of(built: Engine) -> dict[str, torch.Tensor]:
    """Every weight as it is published, whole."""
    names = [name for name, _, _ in built.weight_shapes()]
    return {name: full[0].float() for name, full in zip(names, built.weights([[n] for n in names]), strict=True)}


def gradient_of(built: Engine) -> torch.Tensor:
    """The (clipped) gradient of the first step: AdamW's first moment is then (1 - beta1) times it.

    Weights alone are a blunt witness: after one step AdamW has moved each by the learning rate, whatever the
    gradient's size.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = []
    for parameter in built.packed.parameters():
        if not parameter.requires_grad:
            continue
        if built.config.zero_stage == 0:
            moments.append(built.optimizer.state[parameter]["exp_avg"].flatten())
        else:
            moments.append(safe_get_full_optimizer_state(parameter, "exp_avg").flatten())
    return torch.cat(moments) / (1 - BETA1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    """In norm: fp32 sums in another order differ by a few ulps of the largest terms, not of each element."""
    assert (actual - expected).norm() <= relative * expected.norm()


def assert_close_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """All in one norm: a bias that started at 0 is nothing but AdamW's sign of a gradient, however small that was."""
    assert actual.keys() == expected.keys()
    assert_close(
        torch.cat([actual[n].flatten() for n in expected]), torch.cat([v.flatten() for v in expected.values()])
    )


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def plain_step(path: str, groups: list[Group], *, max_grad_norm: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same step as anyone would write it: padded rows, one per branch, the clipped surrogate, AdamW.

    Returns the clipped gradient and the weights after the step.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(BETA1, 0.99), weight_decay=0.1)
    rows = [[*group.prompt_ids, *branch.token_ids] for group in groups for branch in group.branches]
    starts = [len(group.prompt_ids) for group in groups for _ in group.branches]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logprobs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    logprobs = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    flat = torch.cat([logprobs[i, starts[i] - 1 : len(rows[i]) - 1] for i in range(len(rows))])
    batch = with_targets(groups)
    ratio = (flat - batch["old_logprobs"]).exp()
    clipped = ratio.clamp(1 - 0.5, 1 + 50.0)
    surrogate = torch.minimum(ratio * batch["advantages"], clipped * batch["advantages"])
    (-surrogate.sum() / len(flat)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    optimizer.step()
    return gradient, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("row_tokens", [4096, 40])
def test_a_step_is_the_padded_plain_pytorch_step_whatever_the_rows(model_path: str, row_tokens: int) -> None:
    groups = ragged()
    # 4096 tokens hold all five groups in one row, 40 tokens make four rows of them.
    assert len(pack(Batch.from_groups(groups), row_tokens)) == {4096: 1, 40: 4}[row_tokens]
    expected_gradient, expected = plain_step(model_path, groups, max_grad_norm=0.5)
    settings = {"row_tokens": row_tokens, "max_grad_norm": 0.5, "weight_decay": 0.1}
    with engine(model_path, **settings) as built:
        metrics = built.update(with_targets(groups), OBJECTIVE)
        assert metrics["grad_norm"] > 0.5  # so that clipping was at work
        assert_close(gradient_of(built), expected_gradient)
        assert_close_weights(weights_of(built), expected)


def test_the_order_of_groups_changes_no_gradient(model_path: str) -> None:
    gradients = []
    for seed in (0, 1):
        groups = ragged()
        random.Random(seed).shuffle(groups)
        with engine(model_path, row_tokens=40) as built:
            built.update(with_targets(groups), OBJECTIVE)
            gradients.append(gradient_of(built))
    assert_close(*gradients)


def test_every_zero_stage_makes_the_same_step(model_path: str) -> None:
    results = []
    for cluster in (0, 1, 2, 3):
        with engine(model_path, zero_stage=cluster, row_tokens=40) as built:
            metrics = built.update(with_targets(ragged()), OBJECTIVE)
            results.append((metrics, gradient_of(built), weights_of(built)))
    (expected_metrics, expected_gradient, expected), *others = results
    for metrics, gradient, weights in others:
        assert metrics == pytest.approx(expected_metrics, rel=1e-5)
        assert_close(gradient, expected_gradient)
        assert_close_weights(weights, expected)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_loss_that_is_not_finite_is_an_error_and_leaves_the_weights(model_path: str, zero_stage: int) -> None:
    def poisoned(logprobs: torch.Tensor, entropy: torch.Tensor, columns: Any) -> Any:
        return logprobs.sum() * float("nan"), {}

    with engine(model_path, zero_stage=zero_stage) as built:
        before = weights_of(built)
        with pytest.raises(NumericalError, match="the loss is nan; the weights were not updated"):
            built.update(with_targets(ragged()), poisoned)
        assert_same_weights(weights_of(built), before)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Two warm-up steps of (step + 1) / 3, then 4 steps towards total_steps = 6 and a floor of 0.1:
        # share = 0.1 + 0.9 (1 - p) for p = 0, 1/4, 1/2, 3/4, 1.
        ("linear", [1 / 3, 2 / 3, 1.0, 0.775, 0.55, 0.325, 0.1]),
        # share = 0.1 + 0.9 (1 + cos(pi p)) / 2; cos(pi / 4) = 0.70711.
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.868198, 0.55, 0.231802, 0.1]),
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rates_follow_their_schedule(model_path: str, schedule: str, expected: list[float]) -> None:
    batch = with_targets(ragged()[1:2])
    settings = {"schedule": schedule, "warmup_steps": 2, "min_lr_ratio": 0.1, "learning_rate": 0.01}
    with engine(model_path, total_steps=6, **settings) as built:
        rates = [built.update(batch, OBJECTIVE)["learning_rate"] for _ in range(7)]
    assert rates == pytest.approx([0.01 * share for share in expected], rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_an_adapter_off_is_the_base_model_and_on_is_its_merge(model_path: str, tmp_path: Path, zero_stage: int) -> None:
    batch = Batch.from_groups(ragged())
    with engine(model_path) as base:
        expected = base.outputs(batch)
    lora = LoraConfig(rank=4, alpha=8)
    with engine(model_path, lora=lora, learning_rate=0.02, zero_stage=zero_stage) as built:
        trained = {name for name, parameter in built.packed.named_parameters() if parameter.requires_grad}
        assert trained
        assert all(".lora_" in name for name in trained)
        for _ in range(2):  # B starts at zero: A has a gradient from the second step on
            built.update(with_targets(ragged()), OBJECTIVE)
        adapted = built.outputs(batch)
        assert (adapted - expected).abs().max() > 1e-2
        with built.at_start():
            torch.testing.assert_close(built.outputs(batch), expected, atol=1e-5, rtol=0)
        published = weights_of(built)
        built.save(str(tmp_path), trainer_state=False)
        torch.testing.assert_close(built.outputs(batch), adapted, atol=1e-6, rtol=0)  # merging left no trace
        if zero_stage == 0:
            merged = built.model.merge_and_unload()
            reference = dict(merged.named_parameters())
            assert published.keys() == reference.keys()
            for name, weight in published.items():
                torch.testing.assert_close(weight, reference[name].detach(), atol=1e-6, rtol=1e-6)
    with engine(str(tmp_path)) as loaded:
        torch.testing.assert_close(loaded.outputs(batch), adapted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_start_of_a_partly_frozen_model_stays_beside_it_and_comes_back_with_a_checkpoint(
    model_path: str, tmp_path: Path, zero_stage: int
) -> None:
    batch = Batch.from_groups(ragged())
    settings = {"frozen_layers": 0.5, "learning_rate": 0.02, "zero_stage": zero_stage, "keep_start": True}
    with engine(model_path) as start:
        expected, names = start.outputs(batch), [name for name, _, _ in start.weight_shapes()]
    with engine(model_path, **settings) as built:
        kept = sum(
            parameter.ds_numel if zero_stage == 3 else parameter.numel()
            for parameter in built.packed.start.parameters()
        )
        assert 0 < kept < sum(torch.Size(shape).numel() for _, _, shape in built.weight_shapes())
        for _ in range(2):
            built.update(with_targets(ragged()), OBJECTIVE)
        trained = built.outputs(batch)
        assert (trained - expected).abs().max() > 1e-2
        with built.at_start():
            torch.testing.assert_close(built.outputs(batch), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(built.outputs(batch), trained, atol=1e-6, rtol=0)
        assert [name for name, _, _ in built.weight_shapes()] == names
        built.save(str(tmp_path))
    assert gathered_state(str(tmp_path)).keys() >= set(names)
    assert not any(name.startswith("start.") for name in gathered_state(str(tmp_path)))
    with engine(model_path, **settings) as resumed:
        resumed.load(str(tmp_path))
        torch.testing.assert_close(resumed.outputs(batch), trained, atol=1e-5, rtol=0)
        with resumed.at_start():
            torch.testing.assert_close(resumed.outputs(batch), expected, atol=1e-5, rtol=0)
        resumed.update(with_targets(ragged()), OBJECTIVE)


def test_a_saved_model_is_loaded_by_transformers_with_the_same_logprobs(model_path: str, tmp_path: Path) -> None:
    (group,) = ragged()[3:4]
    with engine(model_path, zero_stage=3) as built:
        built.update(with_targets(ragged()), OBJECTIVE)
        expected = built.outputs(Batch.from_groups([group]))
        built.save(str(tmp_path), trainer_state=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    values = []
    for branch in group.branches:
        ids = torch.tensor([[*group.prompt_ids, *branch.token_ids]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        values.append(logprobs.gather(-1, ids[0, 1:, None])[len(group.prompt_ids) - 1 :, 0])
    torch.testing.assert_close(torch.cat(values), expected, atol=1e-5, rtol=0)


def test_a_new_engine_continues_a_saved_one_to_the_bit(model_path: str, tmp_path: Path) -> None:
    settings = {"zero_stage": 3, "schedule": "linear", "total_steps": 3, "learning_rate": 0.01, "weight_decay": 0.1}
    batches = [with_targets([group]) for group in ragged()[2:]]
    with engine(model_path, **settings) as whole:
        for batch in batches:
            whole.update(batch, OBJECTIVE)
        expected = weights_of(whole)
    with engine(model_path, **settings) as first:
        first.update(batches[0], OBJECTIVE)
        first.save(str(tmp_path))
    with engine(model_path, **settings) as second:
        second.load(str(tmp_path))
        rates = [second.update(batch, OBJECTIVE)["learning_rate"] for batch in batches[1:]]
        assert rates == pytest.approx([0.01 * 2 / 3, 0.01 / 3])
        assert_same_weights(weights_of(second), expected)
    with engine(model_path, **{**settings, "learning_rate": 0.002}) as forked:
        forked.load(str(tmp_path))  # the optimizer's state is the saved one, its settings are the recipe's
        assert [group["lr"] for group in forked.optimizer.param_groups] == pytest.approx([0.002 * 2 / 3])
        rates = [forked.update(batch, OBJECTIVE)["learning_rate"] for batch in batches[1:]]
        assert rates == pytest.approx([0.002 * 2 / 3, 0.002 / 3])


def test_weights_without_a_trainer_state_are_no_checkpoint_to_resume_from(model_path: str, tmp_path: Path) -> None:
    with engine(model_path, zero_stage=1) as built:
        built.save(str(tmp_path), trainer_state=False)
        with pytest.raises(CheckpointError, match="holds no trainer state to resume from"):
            built.load(str(tmp_path))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_bf16_steps_move_fp32_masters_like_fp32_steps(model_path: str, zero_stage: int) -> None:
    batch = with_targets(ragged())
    with engine(model_path) as exact:
        expected = exact.update(batch, OBJECTIVE)
        gradient = gradient_of(exact)
    with engine(model_path, precision="bf16", zero_stage=zero_stage) as built:
        metrics = built.update(batch, OBJECTIVE)
        assert all(dtype == torch.bfloat16 for _, dtype, _ in built.weight_shapes())
        # bf16 has 8 bits: products are off by up to 2^-8, their sums by a few per cent.
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=0.05)
        assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.1)
        if zero_stage:
            assert torch.cosine_similarity(gradient_of(built), gradient, dim=0) > 0.99


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_bf16_gradients_of_many_rows_add_up_as_in_fp32(
    equal_rows: tuple[str, Batch, torch.Tensor], zero_stage: int
) -> None:
    path, batch, expected = equal_rows
    with engine(path, precision="bf16", row_tokens=16, max_grad_norm=1e9, zero_stage=zero_stage) as built:
        metrics = built.update(batch, SupervisedObjective())
        states = getattr(built.optimizer, "optimizer", built.optimizer).state.values()
        gradient = torch.cat([state["exp_avg"].flatten() for state in states])[: len(expected)] / (1 - BETA1)
    # Added in bf16 they are off by 0.03, and the longer the sum the more.
    assert_close(gradient, expected, 0.01)
    assert metrics["grad_norm"] == pytest.approx(float(expected.norm()), rel=0.01)


def test_a_model_of_one_sequence_per_pass_is_refused_where_ranks_would_wait_for_each_other(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    path = write_weights(Qwen2Config(**{**SMALL.to_dict(), "rope_parameters": rope}), tmp_path)
    with engine(path, zero_stage=2, num_ranks=2) as built:
        assert built.forward_path.alone
    with pytest.raises(ConfigError, match="use zero_stage 2, or num_ranks 1"), engine(path, zero_stage=3, num_ranks=2):
        pass


def test_gradient_checkpointing_changes_no_gradient(model_path: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        with engine(model_path, gradient_checkpointing=checkpointing, row_tokens=64) as built:
            built.update(with_targets(ragged()), OBJECTIVE)
            gradients.append(gradient_of(built))
    assert_close(*gradients)


def test_a_model_with_a_sliding_window_is_trained_one_sequence_per_row(tmp_path: Path) -> None:
    sizes = {name: getattr(SMALL, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    config = MistralConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, sliding_window=6
    )
    path = write_weights(config, tmp_path)
    groups = ragged()  # the longest sequence has 50 tokens, far beyond the window
    expected, _ = plain_step(path, groups, max_grad_norm=1.0)
    with engine(path, row_tokens=64) as built:
        assert not built.branches
        built.update(with_targets(groups), OBJECTIVE)
        assert_close(gradient_of(built), expected)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_bf16_weights_read_in_fp32_give_what_a_plain_fp32_model_of_them_gives(tmp_path: Path, zero_stage: int) -> None:
    path = write_weights(SMALL, tmp_path / "model")
    batch = Batch.from_groups(ragged())
    with engine(path, precision="bf16", zero_stage=zero_stage) as built:
        own, exact, again = built.outputs(batch), built.outputs(batch, in_fp32=True), built.outputs(batch)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float()
    with torch.no_grad():
        expected = torch.cat(
            [_logprobs(plain, group.prompt_ids, b.token_ids) for group in ragged() for b in group.branches]
        )
    torch.testing.assert_close(exact, expected, atol=2e-5, rtol=1e-5)
    assert (own - exact).abs().mean() > 1e-3  # what bf16 makes
    assert torch.equal(own, again)  # and nothing is left behind


def _logprobs(model: Any, prompt: Any, answer: Any) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(list(answer))[:, None])[:, 0]
