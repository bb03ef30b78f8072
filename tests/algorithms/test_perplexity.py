"""Perplexity and the rewards made of it, with the vectors of the papers derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from troupe.algorithms import perplexity as ppl

NAN = float("nan")


def nats(*perplexities: float) -> torch.Tensor:
    return torch.tensor(perplexities, dtype=torch.float64).log()


# -- the mean over a completion ----------------------------------------------------------------------------------


def test_the_mean_is_over_the_completions_tokens_alone() -> None:
    # Branch 0: context, then two tokens of probability 1/2 and 1/8: NLL (ln 2 + ln 8) / 2 = 2 ln 2, perplexity 4.
    # Branch 1: one token of probability 1/10. What the context holds must not matter, even when it is NaN.
    logprobs = torch.tensor([NAN, math.log(1 / 2), math.log(1 / 8), math.log(1 / 10)])
    mask = torch.tensor([False, True, True, True])
    nll = ppl.mean_nll(logprobs, torch.tensor([0, 0, 0, 1]), mask, 2)
    assert nll.tolist() == pytest.approx([2 * math.log(2), math.log(10)])
    assert ppl.perplexity(nll).tolist() == pytest.approx([4, 10])


def test_a_long_completion_keeps_its_digits() -> None:
    # 100,000 tokens of probability 1/3, summed in float32, would be off in the fourth digit.
    nll = ppl.mean_nll(
        torch.full((100_000,), math.log(1 / 3)), torch.zeros(100_000, dtype=torch.int64), torch.ones(100_000).bool(), 1
    )
    assert ppl.perplexity(nll).item() == pytest.approx(3, rel=1e-6)


def test_branches_may_come_in_any_order_and_between_one_another() -> None:
    logprobs, mask = torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.ones(4).bool()
    nll = ppl.mean_nll(logprobs, torch.tensor([1, 0, 1, 0]), mask, 2)
    assert nll.tolist() == pytest.approx([3.0, 2.0])


def test_a_branch_without_a_completion_has_no_perplexity() -> None:
    with pytest.raises(ValueError, match="branch 1 has no completion token"):
        ppl.mean_nll(torch.zeros(3), torch.tensor([0, 0, 1]), torch.tensor([True, True, False]), 2)


# -- system 2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "after", "relative", "absolute", "hybrid"),
    [
        (4, 2, 0.5, 0.5, 0.5),  # 1 - 2/4, 1/2, their mean
        (2, 4, 0.0, 0.25, 0.125),  # worse than nothing: 0, 1/4, (0 + .25) / 2
        (10, 1, 0.9, 1.0, 0.95),  # certain of the answer
        (3, 3, 0.0, 1 / 3, 1 / 6),  # no help
    ],
)
def test_relative_absolute_and_hybrid(
    base: float, after: float, relative: float, absolute: float, hybrid: float
) -> None:
    nll, baseline = nats(after), nats(base)
    assert ppl.relative(nll, baseline).item() == pytest.approx(relative, abs=1e-12)
    assert ppl.absolute(nll).item() == pytest.approx(absolute)
    assert ppl.hybrid(nll, baseline, 0.5).item() == pytest.approx(hybrid, abs=1e-12)


def test_alpha_weighs_the_absolute_part() -> None:
    nll, baseline = nats(5), nats(10)  # absolute .2, relative .5
    assert ppl.hybrid(nll, baseline, 1.0).item() == pytest.approx(0.2)
    assert ppl.hybrid(nll, baseline, 0.0).item() == pytest.approx(0.5)
    assert ppl.hybrid(nll, baseline, 0.25).item() == pytest.approx(0.25 * 0.2 + 0.75 * 0.5)


def test_relative_is_the_improvement_in_percent_where_there_is_one() -> None:
    nll, baseline = nats(1.5, 2, 7, 30), nats(8, 2, 6, 1.2)
    assert ppl.relative(nll, baseline).tolist() == pytest.approx(
        (ppl.improvement(nll, baseline) / 100).clamp(min=0).tolist()
    )


# -- system 4 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "percent", "reward"),
    # Of a baseline of 10: 100 (10 - 9.996) / 10 = .04, and so on; equation 7 of the paper.
    [(9.996, 0.04, 0.0), (9.95, 0.5, 0.5), (9.85, 1.5, 0.9), (9.75, 2.5, 1.0)],
)
def test_the_vectors_of_vr_cli(after: float, percent: float, reward: float) -> None:
    gained = ppl.improvement(nats(after), nats(10))
    assert gained.item() == pytest.approx(percent, abs=1e-9)
    assert ppl.piecewise(gained, (0.05, 1, 2), (0, 0.5, 0.9, 1.0)).item() == reward


def test_a_threshold_belongs_to_the_piece_above_it() -> None:
    # 9.995, 9.9 and 9.8 of 10 are .05, 1 and 2 percent in decimals, and need not be so in binary.
    gained = ppl.improvement(nats(9.995, 9.9, 9.8), nats(10, 10, 10))
    assert ppl.piecewise(gained, (0.05, 1, 2), (0, 0.5, 0.9, 1.0)).tolist() == [0.5, 0.9, 1.0]


def test_the_other_transforms() -> None:
    percent = torch.tensor([-30.0, -0.01, 0.0, 0.04, 12.0])
    assert ppl.relu(percent).tolist() == pytest.approx([0, 0, 0, 0.04, 12])
    assert ppl.binary(percent).tolist() == [0, 0, 1, 1, 1]


def test_pieces_and_values_must_fit() -> None:
    with pytest.raises(ValueError, match="2 thresholds cut 3 pieces, but there are 2 values"):
        ppl.piecewise(torch.zeros(1), (1, 2), (0, 1))


# -- extremes ----------------------------------------------------------------------------------------------------


def test_nothing_overflows_not_even_in_float32() -> None:
    worst, best = torch.tensor([5000.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    for value in (
        ppl.perplexity(worst),
        ppl.improvement(worst, best),
        ppl.improvement(best, worst),
        ppl.relative(worst, best),
        ppl.hybrid(worst, best, 0.5),
    ):
        assert math.isfinite(value.float().item())
    assert ppl.improvement(best, worst).item() == pytest.approx(100)
    assert ppl.relative(worst, best).item() == 0


def test_an_improvement_of_a_millionth_of_a_percent_is_not_lost() -> None:
    # d = -1e-8 nats: I = 100 (1 - e^-1e-8) = 1e-6 percent, whatever the perplexity is.
    baseline = torch.tensor([3.0], dtype=torch.float64)
    assert ppl.improvement(baseline - 1e-8, baseline).item() == pytest.approx(1e-6, rel=1e-6)
