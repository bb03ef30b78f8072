"""KL estimators: their values at one token, and by enumeration over a vocabulary of three what they estimate.

Then the coefficient that follows the measured KL.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from troupe.algorithms import kl

LOGITS = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
REF_LOGPROBS = torch.tensor([-0.2, 0.9, 0.4], dtype=torch.float64).log_softmax(0)


def gradient_of(function: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient with respect to the logits of a number computed from the policy's log-probabilities [V]."""
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(function(logits.log_softmax(0)), logits)[0]


def mean_over_policy(values: Tensor, logprobs: Tensor) -> Tensor:
    """E over tokens sampled from the policy: the sampling itself is not differentiated."""
    return (logprobs.exp().detach() * values).sum()


def reverse_kl(logprobs: Tensor) -> Tensor:
    return (logprobs.exp() * (logprobs - REF_LOGPROBS)).sum()


def forward_kl(logprobs: Tensor) -> Tensor:
    return (REF_LOGPROBS.exp() * (REF_LOGPROBS - logprobs)).sum()


def test_the_numbers_of_the_specification() -> None:
    logprob, ref_logprob = torch.tensor(-1.0), torch.tensor(-1.5)
    assert kl.k1(logprob, ref_logprob).item() == pytest.approx(0.5)
    assert kl.k2(logprob, ref_logprob).item() == pytest.approx(0.125)
    # r = e^-0.5 = .606531; r - 1 - log r = .606531 - 1 + .5
    assert kl.k3(logprob, ref_logprob).item() == pytest.approx(0.106531, abs=1e-6)
    # trlx has 1/r = e^0.5 = 1.648721; 1.648721 - 1 - .5
    assert kl.trlx_kl(logprob, ref_logprob).item() == pytest.approx(0.148721, abs=1e-6)


def test_k1_and_k3_are_unbiased() -> None:
    logprobs = LOGITS.log_softmax(0)
    expected = reverse_kl(logprobs).item()
    assert mean_over_policy(kl.k1(logprobs, REF_LOGPROBS), logprobs).item() == pytest.approx(expected, abs=1e-12)
    assert mean_over_policy(kl.k3(logprobs, REF_LOGPROBS), logprobs).item() == pytest.approx(expected, abs=1e-12)


def test_the_trlx_form_is_a_chi_squared_quantity() -> None:
    logprobs = LOGITS.log_softmax(0)
    expected = mean_over_policy((logprobs - REF_LOGPROBS).exp(), logprobs) - 1 - reverse_kl(logprobs)
    reported = mean_over_policy(kl.trlx_kl(logprobs, REF_LOGPROBS), logprobs)
    assert reported.item() == pytest.approx(expected.item(), abs=1e-12)
    assert abs(reported.item() - reverse_kl(logprobs).item()) > 0.05


@pytest.mark.parametrize(
    ("estimator", "divergence"),
    [("k1", lambda logprobs: 0 * logprobs.sum()), ("k2", reverse_kl), ("k3", forward_kl)],
    ids=["k1 in the loss: none", "k2: that of the reverse KL", "k3: that of the forward KL"],
)
def test_expected_gradient_in_the_loss(estimator: kl.Estimator, divergence: Callable[[Tensor], Tensor]) -> None:
    in_loss = gradient_of(lambda logprobs: mean_over_policy(kl.ESTIMATORS[estimator](logprobs, REF_LOGPROBS), logprobs))
    torch.testing.assert_close(in_loss, gradient_of(divergence), atol=1e-12, rtol=0)


def test_k3_in_the_loss_is_not_the_gradient_of_the_reverse_kl() -> None:
    assert (gradient_of(forward_kl) - gradient_of(reverse_kl)).abs().max() > 0.05


def test_k1_in_the_reward_gives_the_gradient_of_the_reverse_kl() -> None:
    # The score function: grad E[-KL penalty] = -E[k1 grad log pi], with k1 a constant.
    def surrogate(logprobs: Tensor) -> Tensor:
        return mean_over_policy(kl.k1(logprobs, REF_LOGPROBS).detach() * logprobs, logprobs)

    torch.testing.assert_close(gradient_of(surrogate), gradient_of(reverse_kl), atol=1e-12, rtol=0)


def test_k3_is_precise_next_to_the_reference() -> None:
    # Series: x^2 / 2 + x^3 / 6 at x = log r = 1e-3. exp(x) - 1 - x in float32 would be wrong by up to 12 %.
    x = 1e-3
    assert kl.k3(torch.tensor(0.0), torch.tensor(x)).item() == pytest.approx(x**2 / 2 + x**3 / 6, rel=1e-3)


def test_k3_is_clamped_only_where_it_explodes() -> None:
    far_below, far_above = torch.tensor(-50.0, requires_grad=True), torch.tensor(50.0, requires_grad=True)
    exploding = kl.k3(far_below, torch.tensor(0.0))  # log r = 50
    assert exploding.item() == pytest.approx(math.expm1(10) - 10)
    assert torch.autograd.grad(exploding, far_below)[0].item() == 0
    linear = kl.k3(far_above, torch.tensor(0.0))  # log r = -50: r - 1 - log r = 49, and its gradient 1 - r = 1
    assert linear.item() == pytest.approx(49)
    assert torch.autograd.grad(linear, far_above)[0].item() == pytest.approx(1)


# The coefficient


@pytest.mark.parametrize(
    ("measured", "form", "factor"),
    [
        (12.0, "trlx", 1.00008),  # e = clip(12 / 6 - 1) = .2; 1 + .2 * 4 / 10,000
        (12.0, "ziegler", 1.02),  # 1 + .1 * .2
        (6.6, "ziegler", 1.01),  # e = .1
        (6.0, "ziegler", 1.0),
        (6.0, "trlx", 1.0),
        (0.0, "ziegler", 0.98),  # e = -1, clipped at -.2
        (-3.0, "trlx", 0.99992),
        (math.inf, "ziegler", 1.02),
    ],
)
def test_the_coefficient_follows_the_kl(measured: float, form: kl.Adaptation, factor: float) -> None:
    coef = kl.adapted_coef(0.05, measured, target=6.0, form=form, num_sequences=4)
    assert coef == pytest.approx(0.05 * factor, rel=1e-12)


def test_a_kl_that_stays_above_its_target_doubles_the_coefficient_in_36_steps() -> None:
    # 1.02^35 = 1.9999, 1.02^36 = 2.04
    coefs = [1.0]
    for _ in range(36):
        coefs.append(kl.adapted_coef(coefs[-1], 60.0, target=6.0, form="ziegler"))
    assert coefs[35] < 2 < coefs[36]


@pytest.mark.parametrize(("measured", "target"), [(math.nan, 6.0), (1.0, 0.0), (1.0, -1.0)])
def test_a_kl_that_is_no_number_and_a_target_of_zero_are_refused(measured: float, target: float) -> None:
    with pytest.raises(ValueError, match="must be a number and its target"):
        kl.adapted_coef(0.1, measured, target=target, form="ziegler")


def test_the_form_of_trlx_needs_the_number_of_answers() -> None:
    with pytest.raises(ValueError, match="num_sequences"):
        kl.adapted_coef(0.1, 1.0, target=6.0, form="trlx")
