"""Rewards per token, GAE and the critic's loss: by hand, against plain loops, and under every split and order.

`Rollouts` is a step of five branches. Tokens outside the mask, those of a whole branch among them, hold NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from troupe.algorithms import gae, losses, shaping

NAN = math.nan


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def booleans(text: str) -> Tensor:
    return torch.tensor([letter == "1" for letter in text], dtype=torch.bool)


def assert_same(result: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(result.double(), expected.double(), atol=tolerance, rtol=tolerance)


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Columns [N] in float64."""

    branch_ids: Tensor
    loss_mask: Tensor
    rewards: Tensor
    values: Tensor


def make_rollouts() -> Rollouts:
    generator = torch.Generator().manual_seed(1)
    branch_ids = torch.arange(5).repeat_interleave(torch.tensor([4, 7, 1, 6, 3]))
    loss_mask = torch.rand(21, generator=generator) > 0.25
    loss_mask[branch_ids == 4] = False

    def column() -> Tensor:
        return torch.where(loss_mask, torch.randn(21, generator=generator, dtype=torch.float64), NAN)

    return Rollouts(branch_ids=branch_ids, loss_mask=loss_mask, rewards=column(), values=column())


def estimate(rollouts: Rollouts, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    return gae.gae(rollouts.rewards, rollouts.values, rollouts.loss_mask, rollouts.branch_ids, gamma=gamma, lam=lam)


# Rewards per token


def test_the_score_stands_at_the_last_trained_token_and_every_trained_token_pays_its_kl() -> None:
    rewards = gae.token_rewards(
        tensor(1, 2, 3),
        tensor(0.5, NAN, -0.1, NAN, 0.3, NAN),
        booleans("101010"),
        torch.tensor([0, 0, 0, 0, 2, 2]),
        coef=0.1,
    )
    # Branch 0 ends with an untrained token; branch 1 has no tokens at all; branch 2's first token is its last trained.
    assert_same(rewards, tensor(-0.05, 0, 0.01 + 1, 0, -0.03 + 3, 0))


def test_rewards_per_token_sum_to_the_kl_shaped_reward_of_the_branch() -> None:
    rollouts = make_rollouts()
    scores = tensor(0.3, -1.0, 2.0, 0.7, 5.0)
    columns = (rollouts.values, rollouts.loss_mask, rollouts.branch_ids)
    rewards = gae.token_rewards(scores, *columns, coef=0.2)
    expected = shaping.kl_in_reward(scores, *columns, 0.2)
    sums = torch.zeros(5, dtype=torch.float64).index_add(0, rollouts.branch_ids, rewards)
    assert_same(sums[:4], expected[:4])
    assert sums[4] == 0, "no trained token, no reward"


# GAE


def test_the_numbers_of_the_specification() -> None:
    # delta = [.6 - .5, .7 - .6, 1 - .7] = [.1, .1, .3]; A = .3, .1 + .95 * .3 = .385, .1 + .95 * .385 = .46575
    advantages, returns = gae.gae(
        tensor(0, 0, 1), tensor(0.5, 0.6, 0.7), booleans("111"), torch.zeros(3).long(), gamma=1.0, lam=0.95
    )
    assert_same(advantages, tensor(0.46575, 0.385, 0.3))
    assert_same(returns, tensor(0.96575, 0.985, 1.0))


def gae_loop(rollouts: Rollouts, gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lam)^l delta_(t + l), Eq. 16 as printed, one token at a time over the trained tokens."""
    result = [0.0] * len(rollouts.branch_ids)
    for branch in set(rollouts.branch_ids.tolist()):
        steps = [n for n, b in enumerate(rollouts.branch_ids.tolist()) if b == branch and rollouts.loss_mask[n]]
        reward = [rollouts.rewards[n].item() for n in steps]
        value = [rollouts.values[n].item() for n in steps] + [0.0]
        for t, n in enumerate(steps):
            result[n] = sum(
                (gamma * lam) ** (k - t) * (reward[k] + gamma * value[k + 1] - value[k]) for k in range(t, len(steps))
            )
    return result


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)])
def test_advantages_are_the_sum_of_the_paper(gamma: float, lam: float) -> None:
    rollouts = make_rollouts()
    advantages, returns = estimate(rollouts, gamma=gamma, lam=lam)
    expected = tensor(*gae_loop(rollouts, gamma, lam))
    assert_same(advantages, expected)
    assert_same(returns, torch.where(rollouts.loss_mask, expected + rollouts.values, 0.0))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_a_critic_that_knows_the_returns_gives_no_advantage(gamma: float, lam: float) -> None:
    rollouts = make_rollouts()
    # What will follow: at lambda = 1 and with a critic that says 0, the advantage is the discounted sum of rewards.
    silent = replace(rollouts, values=torch.zeros(21, dtype=torch.float64))
    to_go, _ = estimate(silent, gamma=gamma, lam=1.0)
    knowing = replace(rollouts, values=to_go)
    advantages, returns = estimate(knowing, gamma=gamma, lam=lam)
    assert_same(advantages, torch.zeros(21))
    assert_same(returns, to_go)


def test_what_an_environment_wrote_in_between_is_passed_over() -> None:
    alone = gae.gae(tensor(0, 0, 1), tensor(0.5, 0.6, 0.7), booleans("111"), torch.zeros(3).long(), gamma=0.9, lam=0.8)
    with_environment = gae.gae(
        tensor(NAN, 0, NAN, NAN, 0, 1, NAN),
        tensor(NAN, 0.5, NAN, NAN, 0.6, 0.7, NAN),
        booleans("0100110"),
        torch.zeros(7).long(),
        gamma=0.9,
        lam=0.8,
    )
    for short, long in zip(alone, with_environment, strict=True):
        assert_same(long[booleans("0100110")], short)
        assert long[booleans("1011001")].tolist() == [0, 0, 0, 0]


def test_branches_do_not_see_each_other_in_whatever_order_they_come() -> None:
    rollouts = make_rollouts()
    whole = estimate(rollouts, gamma=0.9, lam=0.95)
    # Two branches interleaved token by token, the others behind them in reverse.
    order = torch.cat([torch.tensor([0, 4, 1, 5, 2, 6, 7, 3, 8, 9, 10]), *branches(rollouts, 4, 3, 2)])
    shuffled = Rollouts(**{name: column[order] for name, column in vars(rollouts).items()})
    for result, expected in zip(estimate(shuffled, gamma=0.9, lam=0.95), whole, strict=True):
        assert_same(result, expected[order])


def branches(rollouts: Rollouts, *chosen: int) -> list[Tensor]:
    return [(rollouts.branch_ids == branch).nonzero()[:, 0] for branch in chosen]


def test_no_trained_token_has_no_advantage() -> None:
    for size in (0, 3):
        nothing = torch.full((size,), NAN)
        advantages, returns = gae.gae(
            nothing, nothing, torch.zeros(size).bool(), torch.zeros(size).long(), gamma=1, lam=0.95
        )
        assert advantages.tolist() == returns.tolist() == [0.0] * size


def test_advantages_and_returns_are_constants_of_the_values_type() -> None:
    rewards = torch.tensor([0.0, 1.0], requires_grad=True)
    for result in gae.gae(rewards, rewards, booleans("11"), torch.zeros(2).long(), gamma=1, lam=0.95):
        assert not result.requires_grad
        assert result.dtype == torch.float32


# Whitening


def test_whitening_by_hand() -> None:
    # mean 2.5, population variance (2.25 + .25 + .25 + 2.25) / 4 = 1.25
    whitened = gae.whiten(tensor(1, NAN, 2, 3, 4), booleans("10111"))
    assert_same(whitened, tensor(-1.5, 0, -0.5, 0.5, 1.5) / math.sqrt(1.25 + 1e-8))


def test_whitening_equal_advantages_or_a_single_one_or_none_gives_zero() -> None:
    for mask in ("111", "010", "000"):
        assert gae.whiten(tensor(0.5, 0.5, 0.5), booleans(mask)).tolist() == [0, 0, 0]
    assert gae.whiten(tensor(), booleans("")).tolist() == []


# The critic's loss


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope", "clipped"),
    [
        (1.1, 1.0, 2.0, 0.405, -0.9, 0),  # within .2 of the old value: (1.1 - 2)^2 / 2
        (1.5, 1.0, 2.0, 0.32, 0.0, 1),  # ran ahead towards the return: judged at 1.2, (1.2 - 2)^2 / 2
        (0.5, 1.0, 2.0, 1.125, -1.5, 0),  # strayed from the return: (.5 - 2)^2 / 2 is the larger
        (3.0, 1.0, 2.0, 0.5, 1.0, 0),  # beyond the return: (3 - 2)^2 = 1 is larger than (1.2 - 2)^2 = .64
    ],
)
def test_the_value_loss_by_hand(
    value: float, old: float, target: float, loss: float, slope: float, clipped: int
) -> None:
    values = torch.tensor([value], requires_grad=True)
    result, metrics = gae.value_loss(values, torch.tensor([old]), torch.tensor([target]), torch.ones(1), clip=0.2)
    assert result.item() == pytest.approx(loss, abs=1e-6)
    assert torch.autograd.grad(result, values)[0].item() == pytest.approx(slope, abs=1e-6)
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(
        {
            "value/loss": loss,
            "value/clip_fraction": clipped,
            "value/mean": value,
            "value/error": abs(value - target),
        },
        abs=1e-6,
    )


@dataclass(frozen=True, kw_only=True)
class Critic:
    """Columns [N]; `values` requires gradient."""

    rollouts: Rollouts
    values: Tensor
    returns: Tensor
    weights: Tensor

    def loss(self, chosen: Tensor, clip: float | None = 0.2) -> tuple[Tensor, losses.Metrics]:
        old_values = self.rollouts.values[chosen]
        return gae.value_loss(self.values[chosen], old_values, self.returns[chosen], self.weights[chosen], clip=clip)


def make_critic(outside: float = NAN) -> Critic:
    rollouts = make_rollouts()
    noise = torch.randn(21, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 2
    return Critic(
        rollouts=rollouts,
        values=torch.where(rollouts.loss_mask, rollouts.values + noise, outside).requires_grad_(),
        returns=torch.where(rollouts.loss_mask, estimate(rollouts, gamma=1, lam=0.95)[1], outside),
        weights=losses.loss_weights(rollouts.loss_mask, rollouts.branch_ids, "sequence_mean"),
    )


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_loss_is_what_a_loop_over_tokens_computes(clip: float | None) -> None:
    critic = make_critic()
    columns = (critic.values, critic.rollouts.values, critic.returns, critic.weights)
    loss = clipped = mean = error = 0.0
    for value, old, target, weight in zip(*(column.tolist() for column in columns), strict=True):
        if weight:
            near = value if clip is None else min(max(value, old - clip), old + clip)
            loss += weight * max((value - target) ** 2, (near - target) ** 2) / 2
            clipped += weight * ((near - target) ** 2 > (value - target) ** 2)
            mean += weight * value
            error += weight * abs(value - target)
    result, metrics = critic.loss(torch.arange(21), clip)
    assert result.item() == pytest.approx(loss, abs=1e-6)
    assert [metric.item() for metric in metrics.values()] == pytest.approx([loss, clipped, mean, error], abs=1e-6)
    assert (clipped > 0) == (clip is not None), "the data should reach the clip"


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4]], [[4, 0], [], [2, 3, 1]], [[0], [1], [2], [3], [4]]])
def test_parts_in_any_order_add_up_to_the_whole(parts: list[list[int]]) -> None:
    critic = make_critic()
    whole, whole_metrics = critic.loss(torch.arange(21))
    summed, summed_gradient = 0.0, torch.zeros(21, dtype=torch.float64)
    summed_metrics = dict.fromkeys(whole_metrics, 0.0)
    for part in parts:
        chosen = torch.cat([torch.zeros(0, dtype=torch.int64), *branches(critic.rollouts, *part)])
        loss, metrics = critic.loss(chosen)
        summed += loss.item()
        summed_gradient += torch.autograd.grad(loss, critic.values)[0]
        summed_metrics = {name: value + metrics[name].item() for name, value in summed_metrics.items()}
    assert summed == pytest.approx(whole.item(), abs=1e-6)
    assert_same(summed_gradient, torch.autograd.grad(whole, critic.values)[0], tolerance=1e-6)
    assert summed_metrics == pytest.approx({name: value.item() for name, value in whole_metrics.items()}, abs=1e-6)


@pytest.mark.parametrize("outside", [math.nan, math.inf, -1e4])
def test_what_stands_outside_the_mask_does_not_matter(outside: float) -> None:
    usual, strange = make_critic(outside=0.0), make_critic(outside=outside)
    expected, expected_metrics = usual.loss(torch.arange(21))
    loss, metrics = strange.loss(torch.arange(21))
    assert_same(loss, expected)
    assert_same(torch.autograd.grad(loss, strange.values)[0], torch.autograd.grad(expected, usual.values)[0])
    for name, value in metrics.items():
        assert_same(value, expected_metrics[name])
        assert not value.requires_grad


def test_no_gradient_flows_into_the_returns_or_the_old_values() -> None:
    constant = torch.tensor([1.5], requires_grad=True)
    values = torch.tensor([1.0], requires_grad=True)
    gae.value_loss(values, constant, constant, torch.ones(1), clip=0.2)[0].backward()
    assert constant.grad is None
    assert values.grad is not None


# Explained variance


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, 2.0, 3.0), 1.0),  # knows the returns
        ((6.0, 7.0, 8.0), 1.0),  # off by a constant, which the variance does not see
        ((5.0, 5.0, 5.0), 0.0),  # a constant
        ((2.0, 2.0, 2.5), 5 / 12),  # errors -1, 0, .5: mean -1/6, variance 1.25/3 - 1/36 = 7/18
        ((3.0, 2.0, 1.0), -3.0),  # errors -2, 0, 2 have four times the returns' variance
    ],
)
def test_explained_variance_by_hand(values: tuple[float, ...], expected: float) -> None:
    # Returns 1, 2, 3 have variance 2/3.
    result = gae.explained_variance(tensor(*values, NAN), tensor(1, 2, 3, NAN), booleans("1110"))
    assert result.item() == pytest.approx(expected)


def test_equal_returns_leave_nothing_to_explain() -> None:
    equal = tensor(0.1, 0.1, 0.1)
    for mask in ("111", "100", "000"):
        assert gae.explained_variance(tensor(1, 2, 3), equal, booleans(mask)).item() == 0
