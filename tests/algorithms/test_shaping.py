"""Shaping: what a long, a truncated or a strayed answer costs, with numbers derived by hand."""

from __future__ import annotations

import pytest
import torch

from troupe.algorithms import advantages, kl, shaping

NAN = float("nan")


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(1, 0), (16_384, 0), (16_385, -1 / 4096), (18_432, -0.5), (20_480, -1), (20_481, -1), (10**6, -1)],
)
def test_the_overlong_penalty_of_dapo(length: int, penalty: float) -> None:
    # L_max 20,480 and L_cache 4,096: the line starts at 16,384, and 18,432 is its middle.
    assert shaping.overlong_penalty(torch.tensor([length]), 20_480, 4_096).tolist() == [pytest.approx(penalty)]


@pytest.mark.parametrize("cache_tokens", [0, -1, 11])
def test_an_overlong_cache_outside_the_answer_is_refused(cache_tokens: int) -> None:
    with pytest.raises(ValueError, match=rf"cache_tokens \({cache_tokens}\) must be between 1 and max_tokens \(10\)"):
        shaping.overlong_penalty(torch.tensor([5]), 10, cache_tokens)


def test_truncated_branches_leave_the_mask_and_others_keep_theirs() -> None:
    masked = shaping.mask_truncated(
        torch.tensor([True, False, True, True]), torch.tensor([0, 0, 1, 2]), torch.tensor([False, True, False])
    )
    assert masked.tolist() == [True, False, False, True]


def test_kl_in_the_reward_is_summed_over_the_trained_tokens_of_the_branch() -> None:
    shaped = shaping.kl_in_reward(
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([0.5, NAN, -0.1, 0.3, 0.2]),
        torch.tensor([True, False, True, True, True]),
        torch.tensor([0, 0, 0, 1, 1]),
        coef=0.1,
    )
    # 1 - .1 (.5 - .1), 2 - .1 (.3 + .2), and a branch without tokens keeps its score
    assert shaped.tolist() == pytest.approx([0.96, 1.95, 3.0])


def test_the_baseline_of_rloo_sees_the_kl() -> None:
    # Equal scores: only the divergence from the reference tells the answers apart. Sequence KL .6 and .2, coef .5:
    # R = [.7, .9], and each is compared with the other: A = [-.2, .2].
    logprobs = torch.tensor([-0.5, -0.7, -1.0])
    token_kl = kl.k1(logprobs, torch.tensor([-0.8, -1.0, -1.2]))
    shaped = shaping.kl_in_reward(
        torch.ones(2), token_kl, torch.ones(3, dtype=torch.bool), torch.tensor([0, 0, 1]), coef=0.5
    )
    assert advantages.rloo(shaped, torch.zeros(2, dtype=torch.int64)).tolist() == pytest.approx([-0.2, 0.2])


def test_no_gradient_flows_through_the_reward() -> None:
    logprobs = torch.tensor([-0.5], requires_grad=True)
    shaped = shaping.kl_in_reward(
        torch.ones(1), kl.k1(logprobs, torch.tensor([-1.0])), torch.tensor([True]), torch.tensor([0]), coef=0.5
    )
    assert not shaped.requires_grad


def test_an_answer_without_an_end_pays_the_penalty_and_the_others_do_not() -> None:
    shaped = shaping.missing_eos_penalty(torch.tensor([0.5, 2.0, -1.0]), torch.tensor([True, False, True]), 1.0)
    assert shaped.tolist() == [-0.5, 2.0, -2.0]


def test_scores_are_clipped_on_both_sides() -> None:
    clipped = shaping.clip_scores(torch.tensor([-12.0, -10.0, 0.5, 11.0]), 10)
    assert clipped.tolist() == [-10, -10, 0.5, 10]


def test_a_limit_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the limit of scores \(0\) must be greater than 0"):
        shaping.clip_scores(torch.zeros(1), 0)
