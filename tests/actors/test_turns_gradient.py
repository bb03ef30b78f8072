"""A game that is trained as one branch has the gradient of its answers trained one by one, each behind all that it
read.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.actors.small import SMALL, random_group, write_weights
from tests.actors.test_engine import assert_close, engine, gradient_of
from troupe.algorithms.advantage_stage import with_loss_weights
from troupe.algorithms.objective import PolicyObjective
from troupe.algorithms.packing import Batch, pack
from troupe.config.algorithm import AlgorithmConfig, KLConfig
from troupe.records import Branch, Group

pytestmark = pytest.mark.usefixtures("one_rank")

SETTINGS = AlgorithmConfig(clip_low=0.2, clip_high=0.3, entropy_coef=0.05, kl=KLConfig(coef=0.1, estimator="k3"))


def games() -> list[Group]:
    """Prompts with branches of random tokens whose stretches of 1 to 6 tokens are the model's and the environment's."""
    groups = [random_group(prompt, lengths) for prompt, lengths in ((9, [25, 14, 1]), (4, [18]), (12, [30, 22]))]
    return [replace(group, branches=[_in_turns(branch) for branch in group.branches]) for group in groups]


def _in_turns(branch: Branch) -> Branch:
    rng = random.Random(len(branch.token_ids))
    mask: list[bool] = []
    while len(mask) < len(branch.token_ids):
        mask += [len(mask) == 0 or not mask[-1]] * rng.randint(1, 6)
    return replace(branch, loss_mask=mask[: len(branch.token_ids)])


def with_columns(groups: Sequence[Group], aggregation: str) -> Batch:
    """Numbers for the trained tokens, and NaN for the environment's, of which nothing may come."""
    batch = Batch.from_groups(groups)
    generator = torch.Generator().manual_seed(0)
    columns = {
        "advantages": 4 * torch.rand(batch.num_branches, generator=generator)[batch.branch_ids] - 2,
        "old_logprobs": -7 + torch.rand(batch.num_tokens, generator=generator),
        "ref_logprobs": -7 + torch.rand(batch.num_tokens, generator=generator),
    }
    masked = {name: column.masked_fill(~batch["loss_mask"], float("nan")) for name, column in columns.items()}
    return with_loss_weights(batch.with_columns(**masked), aggregation)  # type: ignore[arg-type]


def turn_by_turn(path: str, groups: Sequence[Group], batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """(gradient, metrics) as anyone would compute them: one row of its own for each answer, with no mask at all."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").train()
    columns = {name: batch[name].tolist() for name in ("advantages", "old_logprobs", "ref_logprobs", "loss_weights")}
    loss, clipped, entropies, n, start = torch.zeros(()), [], [], 0, 0
    for group in groups:
        for branch in group.branches:
            for position, trained in enumerate([*branch.loss_mask, False]):
                if trained and (position == 0 or not branch.loss_mask[position - 1]):
                    start = position
                if trained or position == 0 or not branch.loss_mask[position - 1]:
                    continue
                read = [*group.prompt_ids, *branch.token_ids[:start]]
                answer = list(branch.token_ids[start:position])
                logits = model(input_ids=torch.tensor([[*read, *answer]])).logits[0, len(read) - 1 : -1]
                logprobs = logits.log_softmax(-1)
                for offset, token in enumerate(answer):
                    index = n + start + offset
                    value, entropy = logprobs[offset, token], -(logprobs[offset].exp() * logprobs[offset]).sum()
                    ratio = (value - columns["old_logprobs"][index]).exp()
                    advantage = columns["advantages"][index]
                    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
                    log_r = columns["ref_logprobs"][index] - value
                    term = -surrogate + 0.1 * (log_r.exp() - 1 - log_r) - 0.05 * entropy
                    loss = loss + columns["loss_weights"][index] * term
                    ratio = ratio.detach()
                    clipped.append(float((ratio > 1.3 and advantage > 0) or (ratio < 0.8 and advantage < 0)))
                    entropies.append(float(entropy.detach()))
            n += len(branch.token_ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    metrics = {
        "policy/clip_fraction": sum(clipped) / len(clipped),
        "policy/entropy": sum(entropies) / len(entropies),
        "loss": float(loss.detach()),
    }
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), metrics


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_a_branch_of_several_turns_is_trained_as_its_answers_one_by_one(tmp_path: Path, aggregation: str) -> None:
    path, groups, objective = write_weights(SMALL, tmp_path), games(), PolicyObjective(SETTINGS)
    batch = with_columns(groups, aggregation)
    assert len(pack(batch, 60)) == 3
    gradient, expected = turn_by_turn(path, groups, batch)
    with engine(path, row_tokens=60, max_grad_norm=1.0) as built:
        metrics = built.update(batch, objective, **objective.options)
        assert_close(gradient_of(built), gradient)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert 0 < expected["policy/clip_fraction"] < 1
