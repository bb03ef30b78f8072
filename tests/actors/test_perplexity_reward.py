"""The perplexity reward over a real frozen model: what packing gives is what one sequence at a time gives."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.actors.small import write_model
from troupe.actors.frozen import FrozenModel, FrozenWorker
from troupe.actors.perplexity_reward import (
    WATCHED,
    MarkerWatch,
    PerplexityReward,
    baselines_of,
    plan_scorer,
    scorer_length,
)
from troupe.actors.rewarder import Rewarder
from troupe.actors.workers import InlineWorkers
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import PerplexityRewardConfig
from troupe.config.rollout import RewardConfig
from troupe.errors import CheckpointError, ConfigError, DataError, RewardError
from troupe.records import Branch, Group, Sample

LEAD_IN = "{context}\nSo the answer is "
ANSWERS = ["3+5=8", "Tom has 3 and 5 more: 3+5=8", "no idea"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("scorer"), tied=True, hidden_size=64)


@pytest.fixture(scope="module")
def tokenizer(path: str) -> Any:
    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def plain_model(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).float().eval()


@pytest.fixture(scope="module")
def frozen(path: str) -> Iterator[FrozenModel]:
    model = FrozenModel(InlineWorkers(FrozenWorker, [{"rank": 0, "world_size": 1}], role="perplexity"))
    model.start(path, precision="fp32", row_tokens=256, offload=False)
    model.ready(60)
    yield model
    model.shutdown()


@pytest.fixture
def asked(frozen: FrozenModel, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What the frozen model was asked, call by call."""
    calls: list[Batch] = []
    logprobs = frozen.logprobs

    def noted(batch: Batch, **options: Any) -> torch.Tensor:
        calls.append(batch)
        return logprobs(batch, **options)

    monkeypatch.setattr(frozen, "logprobs", noted)
    return calls


@pytest.fixture
def build(frozen: FrozenModel, tokenizer: Any, path: str) -> Iterator[Any]:
    """Builds rewards that share the frozen model."""
    built: list[PerplexityReward] = []

    def make(**settings: Any) -> PerplexityReward:
        config = PerplexityRewardConfig(**settings)
        built.append(PerplexityReward(frozen, plan_scorer(config, path, tokenizer, [], precision="fp32")))
        return built[-1]

    yield make
    for reward in built:
        reward.shutdown()


def sample(gold: str | None = "8", name: str = "task/0", **fields: Any) -> Sample:
    prompt = [
        {"role": "system", "content": "Write what helps to answer."},
        {"role": "user", "content": "Tom has 3 pens and buys 5 more. How many pens now?"},
    ]
    return Sample(sample_id=name, prompt=prompt, gold=gold, fields=fields)


def group(answers: list[str], of: Sample | None = None) -> Group:
    # The policy's own tokens play no role: the scorer reads texts.
    return Group(sample=of or sample(), prompt_ids=[7], branches=[Branch(token_ids=[9], text=text) for text in answers])


def alone(model: Any, before: list[int], gold: list[int]) -> float:
    """The perplexity of `gold` after `before`, by a forward pass of transformers over this one sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *gold]])).logits[0].double()
    logprobs = logits.log_softmax(-1)
    nats = [-float(logprobs[len(before) - 1 + index, token]) for index, token in enumerate(gold)]
    return math.exp(sum(nats) / len(nats))


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# -- the same as one sequence at a time --------------------------------------------------------------------------

QUESTION = "Tom has 3 pens and buys 5 more. How many pens now?"
LONG = "Tom had 3 and 5, which is 8."


@pytest.mark.parametrize("gold", ["8", LONG], ids=["one token", "many tokens"])
def test_an_opened_turn_is_read_as_it_would_be_alone(build: Any, plain_model: Any, tokenizer: Any, gold: str) -> None:
    parts = build(kind="absolute", context_template=LEAD_IN).score(group(ANSWERS, sample(gold))).result(60)
    prompt = ids(tokenizer, f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    baseline = alone(plain_model, prompt, ids(tokenizer, gold))
    for answer, part in zip(ANSWERS, parts, strict=True):
        before = [*prompt, *ids(tokenizer, answer), *ids(tokenizer, "\nSo the answer is ")]
        expected = alone(plain_model, before, ids(tokenizer, gold))
        assert part["perplexity/gold"] == pytest.approx(expected, rel=1e-5)
        assert part["perplexity/nll"] == pytest.approx(math.log(expected), abs=1e-5)
        assert part["perplexity/baseline"] == pytest.approx(baseline, rel=1e-5)
        assert part["perplexity"] == pytest.approx(1 / expected, rel=1e-5)
        assert part["perplexity/improvement"] == pytest.approx(100 * (1 - expected / baseline), abs=1e-3)


def test_an_answer_at_the_end_of_the_users_turn_is_read_as_it_would_be_alone(
    build: Any, plain_model: Any, tokenizer: Any, asked: list[Batch]
) -> None:
    story = sample(
        LONG,
        scorer_prompt=[{"role": "system", "content": "Narrate."}, {"role": "user", "content": QUESTION}],
        context_template="\n\nPlan:\n{context}",
    )
    reward = build(kind="improvement", transform="raw", place="user", end_of_turn=True)
    parts = reward.score(group(ANSWERS, story)).result(60)
    head = ids(tokenizer, f"<|im_start|>system\nNarrate.<|im_end|>\n<|im_start|>user\n{QUESTION}")
    tail = ids(tokenizer, "<|im_end|>\n<|im_start|>assistant\n")
    gold = [*ids(tokenizer, LONG), tokenizer.eos_token_id]
    baseline = alone(plain_model, [*head, *tail], gold)
    for answer, part in zip(ANSWERS, parts, strict=True):
        expected = alone(plain_model, [*head, *ids(tokenizer, f"\n\nPlan:\n{answer}"), *tail], gold)
        assert part["perplexity/gold"] == pytest.approx(expected, rel=1e-5)
        assert part["perplexity"] == pytest.approx(100 * (baseline - expected) / baseline, abs=1e-3)
    # The sections are read once for all plans and for none.
    (batch,) = asked
    assert batch.prompt_ids.tolist() == head
    assert batch.num_branches == len(ANSWERS) + 1


def test_plain_text_is_the_question_alone_and_the_answer_follows_it(
    build: Any, plain_model: Any, tokenizer: Any
) -> None:
    reward = build(kind="hybrid", form="text", prompt_end="\n", context_template="{context}\nThe final answer is: ")
    parts = reward.score(group(ANSWERS)).result(60)
    prompt, gold = ids(tokenizer, f"{QUESTION}\n"), ids(tokenizer, "8")
    baseline = alone(plain_model, prompt, gold)
    for answer, part in zip(ANSWERS, parts, strict=True):
        after = alone(plain_model, [*prompt, *ids(tokenizer, answer), *ids(tokenizer, "\nThe final answer is: ")], gold)
        assert part["perplexity"] == pytest.approx(0.5 / after + 0.5 * max(0, 1 - after / baseline), rel=1e-4)


# -- what is asked -----------------------------------------------------------------------------------------------


def test_a_baseline_is_asked_once_and_equal_answers_are_one(build: Any, asked: list[Batch]) -> None:
    reward = build()
    first = reward.score(group(["a b", "a b", "c"])).result(60)
    second = reward.score(group(["d"])).result(60)
    reward.score(group(["d"], sample(name="task/1"))).result(60)
    assert [batch.num_branches for batch in asked] == [2 + 1, 1, 1 + 1]
    assert first[0] == first[1]  # to the last bit
    assert first[0]["perplexity/baseline"] == second[0]["perplexity/baseline"]


def test_only_gold_tokens_are_read(build: Any, asked: list[Batch], tokenizer: Any) -> None:
    build().score(group(ANSWERS, sample("12"))).result(60)
    gold = asked[0].token_ids[asked[0]["loss_mask"]]
    assert gold.tolist() == ids(tokenizer, "12") * (len(ANSWERS) + 1)


def test_scores_do_not_depend_on_the_order_of_arrival_and_are_joined_by_id(build: Any) -> None:
    groups = [group(ANSWERS, sample(str(number), name=f"task/{number}")) for number in (3, 8, 12)]
    results = []
    for seed in range(2):
        reward, order = build(kind="improvement", transform="raw"), [0, 1, 2]
        random.Random(seed).shuffle(order)
        futures = {index: reward.score(groups[index]) for index in order}
        results.append([part["perplexity"] for index in range(3) for part in futures[index].result(60)])
    assert results[0] == pytest.approx(results[1], abs=1e-4)


# -- the marker --------------------------------------------------------------------------------------------------


def test_what_stands_behind_the_last_marker_is_handed_over(build: Any, asked: list[Batch], tokenizer: Any) -> None:
    reward = build(marker=["In summary:", "Plan:"], context_template="{context}")
    reward.score(group(["In summary: I think. Plan: he leaves."])).result(60)
    (batch,) = asked
    context = batch.token_ids[~batch["loss_mask"]]
    assert tokenizer.decode(context) == "he leaves."


@pytest.mark.parametrize("text", ["he leaves", "In summary", "In summary:  \n"])
def test_an_answer_without_a_marker_earns_what_the_recipe_says_and_is_counted(build: Any, text: str) -> None:
    reward = build(kind="improvement", transform="raw", marker=["In summary:"], missing_marker_score=-0.5)
    lacking, having = reward.score(group([text, "In summary: he leaves."])).result(60)
    assert lacking["perplexity"] == -0.5
    assert lacking["perplexity/marker_missing"] == 1
    # Nothing was handed over, so the gold answer is as likely as before.
    assert lacking["perplexity/gold"] == lacking["perplexity/baseline"]
    assert lacking["perplexity/improvement"] == 0
    assert having["perplexity/marker_missing"] == 0
    assert having["perplexity"] == having["perplexity/improvement"] != 0


def test_a_group_that_hands_nothing_over_twice_asks_nothing_twice(build: Any, asked: list[Batch]) -> None:
    reward = build(marker=["In summary:"])
    for _ in range(2):
        reward.score(group(["?", "!"])).result(60)
    assert [batch.num_branches for batch in asked] == [1]


def test_a_marker_that_is_hardly_ever_there_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = MarkerWatch(["In summary:"])
    with caplog.at_level(logging.WARNING):
        for missing in (False, True, True, False, True):  # better and worse again: told again
            watch.saw([missing] * WATCHED)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "100 % of the last answers have no marker ('In summary:')"
    ] * 2


# -- what cannot be scored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gold", [None, ""])
def test_a_gold_answer_of_zero_tokens_is_refused(build: Any, gold: str | None) -> None:
    with pytest.raises(DataError, match="task/0 has a gold answer of zero tokens"):
        build(end_of_turn=True).score(group(["a"], sample(gold))).result(60)


def test_a_document_longer_than_the_scorer_is_refused_before_anything_starts(path: str, tokenizer: Any) -> None:
    long = sample("pens " * 100)
    with pytest.raises(DataError, match=r"task/0: its prompt and gold answer take \d+ tokens .* which reads 128"):
        plan_scorer(PerplexityRewardConfig(), path, tokenizer, [long], precision="fp32")


def test_an_answer_that_does_not_fit_loses_its_end_and_nothing_else(
    build: Any, asked: list[Batch], tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    reward = build(context_template=LEAD_IN)
    for _ in range(2):
        reward.score(group(["a " * 300])).result(60)
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "an answer to task/0 is cut: with it the scorer would read more than 128 tokens"
    ]
    batch = asked[0]
    first = int(batch.branch_lengths[0])
    assert len(batch.prompt_ids) + first == 128
    assert tokenizer.decode(batch.token_ids[:first]).endswith("a a a\nSo the answer is 8")


def test_a_length_that_the_model_has_not_is_refused(path: str) -> None:
    assert scorer_length(path, PerplexityRewardConfig(max_length=64)) == 64
    with pytest.raises(ConfigError, match=r"max_length \(129\) is more than .* has positions for \(128\)"):
        scorer_length(path, PerplexityRewardConfig(max_length=129))


def test_a_likelihood_that_is_no_number_is_an_error(
    build: Any, frozen: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "logprobs", lambda batch, **_: torch.full((batch.num_tokens,), -math.inf))
    with pytest.raises(RewardError, match="gold answer of task/0 a mean log-likelihood of -inf"):
        build().score(group(["a"])).result(60)


# -- beside functions, and with a file ---------------------------------------------------------------------------


def test_the_sum_is_that_of_functions_and_perplexity_and_a_missing_judgement_stays_missing(build: Any) -> None:
    rewarder = Rewarder(
        [RewardConfig(fn="tests.light_rewards:brevity_in_words", name="brevity", weight=2.0)],
        parts=[build(kind="absolute", weight=0.5), build(kind="absolute", weight=0.25)],
    )
    try:
        scored = rewarder.score(group(ANSWERS)).result(60)
    finally:
        rewarder.shutdown()
    for text, score in list(zip(ANSWERS, scored.scores, strict=True))[:2]:
        brief, foreseen = score.parts["brevity"], score.parts["perplexity"]
        assert brief == pytest.approx(1 / len(text.split()))
        # Two passes over the same tokens, at the same time: the last bits of their perplexities may differ.
        assert score.value == pytest.approx(2 * brief + 0.75 * foreseen, abs=1e-4)
    assert scored.scores[2].value is None
    assert "perplexity/gold" in scored.scores[2].parts


def test_a_baseline_from_a_file_is_the_one_that_would_be_computed(
    build: Any, frozen: FrozenModel, tokenizer: Any, path: str, tmp_path: Path, asked: list[Batch]
) -> None:
    config = PerplexityRewardConfig(baseline_file=str(tmp_path / "baselines.jsonl"))
    with pytest.raises(DataError, match="lacks the baselines of 1 of 1 samples, task/0 the first"):
        plan_scorer(config, path, tokenizer, [sample()], precision="fp32")
    plan = plan_scorer(config, path, tokenizer, [sample()], precision="fp32", complete=False)
    assert plan.baselines is not None
    plan.baselines.add(baselines_of(frozen, plan.prompt, [sample()]))

    reward = PerplexityReward(frozen, plan_scorer(config, path, tokenizer, [sample()], precision="fp32"))
    computed = build().score(group(ANSWERS)).result(60)
    asked.clear()
    read = reward.score(group(ANSWERS)).result(60)
    assert [batch.num_branches for batch in asked] == [len(ANSWERS)]
    assert [part["perplexity"] for part in read] == pytest.approx([part["perplexity"] for part in computed], abs=1e-5)
    with pytest.raises(CheckpointError, match="baseline of another prompt or gold answer for task/0"):
        reward.score(group(ANSWERS, sample("9"))).result(60)
    reward.shutdown()
