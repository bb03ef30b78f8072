"""Parts of a plan: whose answers are compared, which answers exist already, and what answers depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from troupe.config.evaluation import BenchmarkConfig, EvaluateConfig
from troupe.config.rollout import RewardConfig
from troupe.errors import ConfigError, DataError
from troupe.evaluation.plan import (
    Candidate,
    EvaluationPlan,
    check_samples,
    compared_candidates,
    fitting_samples,
    other_answers,
    with_opponent,
)
from troupe.records import Branch, Sample
from troupe.rewards.build import build_rewards

SAMPLES = [Sample(sample_id=f"s/{n}", prompt="?", gold=str(n)) for n in (1, 2)]
CANDIDATES = [
    Candidate(name="run@0", kind="trained", step=0),
    Candidate(name="run@10", kind="trained", step=10),
    Candidate(name="base", kind="base", path="a/b"),
    Candidate(name="gpt", kind="endpoint"),
]


def benchmark(between: list[str] | None = None) -> BenchmarkConfig:
    preferences = {"judge": {"fn": "length"}, "between": between or []}
    return BenchmarkConfig(
        trained="runs/run",
        base="a/b",
        endpoints={"gpt": {"base_url": "http://x/v1", "model": "m"}},
        preferences=None if between is None else preferences,
    )


@pytest.mark.parametrize(
    ("between", "compared"),
    [
        (None, []),
        ([], ["run@10", "base", "gpt"]),  # the last step stands for the trained model
        (["run", "gpt"], ["run@10", "gpt"]),
        (["run@0", "run@10"], ["run@0", "run@10"]),
        (["gpt", "run", "run@10"], ["gpt", "run@10"]),  # each once, as the recipe orders them
    ],
)
def test_one_step_of_the_trained_model_meets_the_others(between: list[str] | None, compared: list[str]) -> None:
    assert compared_candidates(benchmark(between), CANDIDATES) == compared


def test_a_step_that_is_not_measured_is_not_compared() -> None:
    with pytest.raises(ConfigError, match="between names 'run@5'; there are run@0, run@10, base, gpt"):
        compared_candidates(benchmark(["run@5", "gpt"]), CANDIDATES)


# -- answers that exist already ----------------------------------------------------------------------------------------


def test_references_take_part_where_they_are_the_opponent_or_scored(tmp_path: Path) -> None:
    def names(**given: Any) -> list[str]:
        return list(other_answers(EvaluateConfig(model="x", **given), SAMPLES))

    assert names() == []
    assert names(against="reference") == ["reference"]
    assert names(reward_model={"path": "r"}) == ["reference"]
    assert names(reward_model={"path": "r"}, references=False) == []
    file = tmp_path / "human.jsonl"
    file.write_text('{"sample_id": "s/1", "answer": "eins"}\n{"sample_id": "s/2", "answer": ""}\n')
    found = other_answers(EvaluateConfig(model="x", against=str(file)), SAMPLES)
    assert {name: [branch.text for branch in each.values()] for name, each in found.items()} == {"human": ["eins", ""]}


def test_a_judge_sees_the_other_answer_beside_what_the_sample_has() -> None:
    sample = Sample(sample_id="s/1", prompt="?", fields={"topic": "x"})
    seen = with_opponent(sample, {"s/1": Branch(token_ids=(), text="other")})
    assert seen.fields == {"topic": "x", "against": "other"}
    assert sample.fields == {"topic": "x"}
    assert with_opponent(sample, {}) is sample


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_sample_without_a_reference_answer_is_refused_where_one_is_needed() -> None:
    lacking = [*SAMPLES, Sample(sample_id="s/3", prompt="?"), Sample(sample_id="s/4", prompt="?", gold="  ")]
    with pytest.raises(
        DataError, match=r"the metric accuracy needs a reference answer .* and 2 of 4 have none, s/3 the"
    ):
        check_samples(EvaluateConfig(model="x"), lacking, None)
    check_samples(EvaluateConfig(model="x", metrics=[RewardConfig(fn="length")]), lacking, None)
    check_samples(EvaluateConfig(model="x"), SAMPLES, build_rewards([RewardConfig(fn="math_answer")]))
    check_samples(EvaluateConfig(model="x"), [], None)


class Counting:
    """A form whose prompts are as many tokens as the text has characters."""

    def __init__(self, extra: int = 0) -> None:
        self.extra = extra

    def prompt(self, sample: Sample) -> list[int]:
        return [0] * (len(str(sample.prompt)) + self.extra)


def test_a_prompt_must_fit_every_model_so_that_all_are_measured_on_the_same_ones() -> None:
    samples = [Sample(sample_id=f"s/{n}", prompt="x" * n) for n in (1, 4, 5, 6)]
    config, forms = EvaluateConfig(model="x", max_prompt_tokens=5), {"a": Counting(), "b": Counting(extra=1)}

    def kept(*given: Any) -> list[str]:
        return [sample.sample_id for sample in fitting_samples(config, samples, *given)]

    assert kept({"a": forms["a"]}) == ["s/1", "s/4", "s/5"]
    assert kept(forms) == ["s/1", "s/4"]
    # A model with a prompt of its own is measured by that one.
    longer = [Sample(sample_id=sample.sample_id, prompt="x" * 5) for sample in samples[:1]] + samples[1:]
    assert kept({"a": forms["a"], "c": forms["b"]}, {"a": samples, "c": longer}) == ["s/4"]
    with pytest.raises(DataError, match=r"all 4 held-out prompts are longer than max_prompt_tokens \(5\); raise it"):
        fitting_samples(config, samples, {"a": Counting(extra=9)})  # type: ignore[dict-item]


def test_a_candidate_has_prompts_of_its_own_or_the_datas() -> None:
    own = [Sample(sample_id="s/1", prompt="mine")]
    plan = EvaluationPlan(samples=SAMPLES, too_long=0, candidates=CANDIDATES, prompts={"base": own})
    assert plan.prompts_of("base") == own
    assert plan.prompts_of("gpt") == SAMPLES
    assert plan.lines() == ["2 held-out prompts, 0 more are too long; they are answered by run@0, run@10, base, gpt"]
