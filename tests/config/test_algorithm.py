"""From scores to a loss: which settings mean something together, and what the perplexity reward may be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from troupe.config.algorithm import (
    CONTEXT,
    PERPLEXITY_PARTS,
    AdaptiveKLConfig,
    AlgorithmConfig,
    ImportanceConfig,
    KLConfig,
    PerplexityRewardConfig,
    ReadingConfig,
)
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import Section, load_config
from troupe.errors import ConfigError


@pytest.mark.parametrize(
    ("estimator", "placement", "kind"),
    [
        ("auto", "loss", "k3"),  # low variance, and its gradient is that of the KL
        ("auto", "reward", "k1"),  # unbiased, and no gradient flows through a reward
        ("k2", "loss", "k2"),
        ("k3", "reward", "k3"),
    ],
)
def test_the_estimator_of_the_kl_follows_its_place_unless_it_is_named(
    estimator: Any, placement: Any, kind: str
) -> None:
    assert KLConfig(coef=0.1, estimator=estimator, placement=placement).kind == kind


def test_k1_in_the_loss_is_refused_only_where_it_would_count() -> None:
    with pytest.raises(ValidationError, match="k1 in the loss has zero expected gradient; use k2 or k3"):
        KLConfig(coef=0.1, estimator="k1")
    assert KLConfig(coef=0, estimator="k1").kind == "k1"
    assert KLConfig(coef=0.1, estimator="k1", placement="reward").kind == "k1"


@pytest.mark.parametrize(
    ("section", "given", "sentence"),
    [
        (AlgorithmConfig, {"importance": ImportanceConfig(type="truncate")}, "importance.type needs old_logprobs: recompute"),
        (AlgorithmConfig, {"importance": ImportanceConfig(type="mask")}, "or the two sides of its ratio are the same numbers"),
        (AlgorithmConfig, {"ratio": "sequence"}, r"needs aggregation: sequence_mean \(got token_mean\)"),
        (AlgorithmConfig, {"ratio": "sequence", "aggregation": "constant"}, r"\(got constant\), or long answers would count more"),
        (AlgorithmConfig, {"importance": ImportanceConfig(low=2, high=2)}, r"importance.low \(2.0\) must be below importance.high \(2.0\)"),
        (AlgorithmConfig, {"dual_clip": 1.0}, "greater than 1"),
        (AlgorithmConfig, {"score_clip": 0.0}, "greater than 0"),
        (AlgorithmConfig, {"minibatches": 0}, "greater than or equal to 1"),
        (AdaptiveKLConfig, {"target": 0.0}, "greater than 0"),
        (ReadingConfig, {"context_template": "no place"}, r"context_template must hold \{context\} once"),
        (ReadingConfig, {"context_template": CONTEXT * 2}, r"context_template must hold \{context\} once"),
        (ReadingConfig, {"marker": []}, "name at least one marker, none of them blank"),
        (ReadingConfig, {"place": "user", "form": "text"}, "form: text has none; use form: chat, or place: assistant"),
        (PerplexityRewardConfig, {"thresholds": [1.0], "values": [0.0]}, "1 thresholds cut 2 pieces, but there are 1 values"),
        (PerplexityRewardConfig, {"thresholds": [1.0, 1.0, 2.0]}, r"thresholds must rise from each to the next \(got \[1.0, 1.0, 2.0\]\)"),
        (PerplexityRewardConfig, {"max_length": 1}, "greater than or equal to 2"),
        (PerplexityRewardConfig, {"alpha": 1.1, "kind": "hybrid"}, "less than or equal to 1"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_together_are_refused(
    section: type[Section], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        section(**given)


@pytest.mark.parametrize(
    ("section", "given"),
    [
        (AlgorithmConfig, {"importance": ImportanceConfig(type="mask"), "old_logprobs": "recompute"}),
        (AlgorithmConfig, {"ratio": "sequence", "aggregation": "sequence_mean"}),
        (ReadingConfig, {"context_template": "Plan: {context} {not a place}", "marker": ["So:", "In summary:"]}),
        (PerplexityRewardConfig, {"kind": "improvement", "transform": "piecewise", "thresholds": [], "values": [1.0]}),
        (PerplexityRewardConfig, {"kind": "hybrid", "alpha": 0.3}),
        (PerplexityRewardConfig, {"baseline_file": "b.parquet"}),
    ],
)
def test_settings_that_mean_something_together_are_taken(section: type[Section], given: dict[str, Any]) -> None:
    assert section(**given).model_dump(exclude_unset=True).keys() == given.keys()


# -- the perplexity reward in a recipe ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["values=[0, 1]"], "3 thresholds cut 4 pieces, but there are 2 values"),
        (["thresholds=[1, 0.5, 2]"], "thresholds must rise"),
        (["context_template='Plan:'"], r"must hold \{context\} once"),
        (["marker=[' ']"], "at least one marker"),
        (["baseline_file=b.csv"], r"end its name with \.jsonl or \.parquet"),
        (["place=user", "form=text"], "place: user puts the answer into a turn"),
        (["transform=raw"], "transform belongs to kind: improvement"),
        (["alpha=0.3"], "alpha belongs to kind: hybrid"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(GRPOConfig, [f"perplexity_reward.{setting}" for setting in settings])


def test_a_perplexity_reward_may_be_the_whole_reward_and_choose_the_checkpoint() -> None:
    base = ["perplexity_reward.kind=hybrid", "rewards=[]", "evaluation.metrics=[]"]
    config = load_config(
        GRPOConfig, [*base, "evaluation.best_metric=perplexity/gold", "evaluation.higher_is_better=false"]
    )
    assert config.evaluation.best == "perplexity/gold"
    assert config.model_parts == ["perplexity", *PERPLEXITY_PARTS]
    with pytest.raises(
        ConfigError, match=r"name the metric of the best checkpoint .* \(perplexity, perplexity/improvement"
    ):
        load_config(GRPOConfig, base)


def test_the_scorer_is_the_reference_where_both_are_the_starting_model() -> None:
    asked = ["perplexity_reward.kind=relative", "algorithm.kl.coef=1e-6"]
    assert load_config(GRPOConfig, asked).scorer_is_reference
    for changed in (
        asked[:1],  # no KL, no reference
        [*asked, "perplexity_reward.path=a/b"],
        [*asked, "perplexity_reward.precision=fp32"],
        [*asked, "reference.source=adapter_off", "policy.lora.rank=4"],
        asked[1:],  # no scorer
    ):
        assert not load_config(GRPOConfig, changed).scorer_is_reference, changed
