"""The run's KL coefficient: fixed, or moved by either controller, each fed with its own measure of the KL."""

from __future__ import annotations

import math

import pytest
import torch

from troupe.algorithms.kl_coefficient import KLCoefficient
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import AdaptiveKLConfig, AlgorithmConfig, KLConfig
from troupe.records import Branch, Group, Sample


def batch(log_ratios: list[list[float]], masked: tuple[int, ...] = ()) -> Batch:
    """One answer per list of log pi - log pi_ref; `masked` are the tokens outside the loss, which hold NaN."""
    branches = [Branch(token_ids=[7] * len(answer)) for answer in log_ratios]
    flat = Batch.from_groups([Group(sample=Sample(sample_id="a", prompt=""), prompt_ids=[1], branches=branches)])
    old = torch.tensor([value for answer in log_ratios for value in answer])
    mask = torch.ones(len(old), dtype=torch.bool)
    mask[list(masked)] = False
    old[~mask] = math.nan
    return flat.with_columns(old_logprobs=old, ref_logprobs=torch.zeros(len(old)), loss_mask=mask)


def config(form: str, **settings: float) -> KLConfig:
    return KLConfig(coef=0.1, placement="reward", adaptive=AdaptiveKLConfig(target=2.0, form=form, **settings))  # type: ignore[arg-type]


def test_without_a_controller_the_coefficient_stays_and_nothing_is_logged() -> None:
    coefficient = KLCoefficient(KLConfig(coef=0.1, placement="reward"))
    assert coefficient.follow(batch([[1.0]])) == {}
    assert coefficient.value == 0.1


def test_zieglers_controller_follows_k1_summed_over_each_answer() -> None:
    coefficient = KLCoefficient(config("ziegler"))
    # Two answers: 1.0 + 0.9 and 2.5 - 0.2; nats per answer (1.9 + 2.3) / 2 = 2.1. Error 2.1 / 2 - 1 = 0.05, within
    # 0.2; the coefficient becomes 0.1 (1 + 0.1 x 0.05) = 0.1005. The masked 9.0 counts nowhere.
    metrics = coefficient.follow(batch([[1.0, 0.9], [2.5, 9.0, -0.2]], masked=(3,)))
    assert metrics == pytest.approx({"policy/kl_coef": 0.1, "policy/kl_per_answer": 2.1})
    assert coefficient.value == pytest.approx(0.1005)


def test_trlxs_controller_follows_trlxs_estimate_and_the_number_of_answers() -> None:
    coefficient = KLCoefficient(config("trlx", horizon=40))
    # r = pi_ref / pi = exp(-1); trlx reports 1/r - 1 + log r = e - 2 = 0.71828 of each token, 2.15485 of the three of
    # an answer. Error 0.07742; 4 answers of a horizon of 40 make 0.1 (1 + 0.07742 x 4 / 40) = 0.1007742.
    metrics = coefficient.follow(batch([[1.0, 1.0, 1.0]] * 4))
    assert metrics["policy/kl_per_answer"] == pytest.approx(3 * (math.e - 2), abs=1e-5)
    assert coefficient.value == pytest.approx(0.1007742, abs=1e-6)


@pytest.mark.parametrize(("kl", "factor"), [(100.0, 1 + 0.1 * 0.2), (-100.0, 1 - 0.1 * 0.2)])
def test_a_step_moves_it_by_a_fifth_of_the_rate_at_most(kl: float, factor: float) -> None:
    coefficient = KLCoefficient(config("ziegler", rate=0.1))
    coefficient.follow(batch([[kl]]))
    assert coefficient.value == pytest.approx(0.1 * factor)


def test_a_step_learns_with_the_coefficient_as_it_is_and_all_other_settings_as_they_were() -> None:
    kl = config("ziegler")
    settings = AlgorithmConfig(advantage="rloo", epochs=3, kl=kl)
    coefficient = KLCoefficient(kl)
    coefficient.follow(batch([[100.0]]))
    within = coefficient.within(settings)
    assert within.kl.coef == pytest.approx(0.102)
    assert within.model_copy(update={"kl": kl}) == settings


def test_a_coefficient_whose_value_is_put_back_goes_on_as_if_it_had_not_ended() -> None:
    steps = [batch([[2.1]]), batch([[9.0]]), batch([[0.1]])]
    whole = KLCoefficient(config("ziegler"))
    for step in steps:
        whole.follow(step)
    first, second = KLCoefficient(config("ziegler")), KLCoefficient(config("ziegler"))
    first.follow(steps[0])
    second.value = first.value  # as a checkpoint does
    for step in steps[1:]:
        second.follow(step)
    assert second.value == whole.value
