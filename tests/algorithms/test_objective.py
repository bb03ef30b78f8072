"""Every objective of supervised training and of the critic, through the engine: the gradient is that of the whole step.

However its groups are cut into rows, ordered, or spread over ranks; and, for the losses on pairs, it is the gradient of
plain PyTorch on padded sequences with the pairs written out one by one.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from tests.actors.small import random_group, write_model
from tests.actors.test_engine import assert_close, gradient_of
from tests.actors.test_values import write_scalar_model
from troupe.actors.engine import Engine
from troupe.actors.placement import Cluster
from troupe.actors.trained import TrainedModel, TrainedWorker
from troupe.algorithms.advantage_stage import with_loss_weights, with_preference_pairs
from troupe.algorithms.objective import (
    Objective,
    PreferenceObjective,
    RankingObjective,
    SupervisedObjective,
    ValueObjective,
)
from troupe.algorithms.packing import Batch, pack
from troupe.config.models import PolicyConfig
from troupe.records import Branch, Group, Sample, Score

pytestmark = pytest.mark.usefixtures("one_rank")

VOCAB = 300
BETA = 0.1
RANKS = {"2": [0, 1], "3": [0, 1, 2], "3, a tie": [0, 1, 1], "4, two ties": [0, 0, 1, 1]}
"""Of K answers; smaller is better, equal is a tie."""
MANY_ROWS = 60


def preferences() -> list[Group]:
    """Five prompts with ranked answers: K = 2, 3 and 4, with ties and margins; one answer has tokens outside its
    loss.
    """
    shapes = [(6, [5, 9], "2", 0.5), (12, [4, 8, 3], "3", None), (9, [7, 2, 6], "3, a tie", None)]
    shapes += [(20, [3, 5, 4, 6], "4, two ties", None), (2, [11, 10], "2", 1.25)]
    groups = []
    for prompt, lengths, ranks, margin in shapes:
        drawn = random_group(prompt, lengths, vocab=VOCAB)
        fields: dict[str, Any] = {} if margin is None else {"margin": margin}
        sample = Sample(sample_id=f"pair/{prompt}", prompt="", fields=fields)
        scores = [Score(value=-float(rank)) for rank in RANKS[ranks]]
        branches = [*drawn.branches]
        if prompt == 20:  # a token that an environment wrote counts neither in DPO's sums nor in SFT
            branches[0] = Branch(token_ids=branches[0].token_ids, loss_mask=[True, False, True])
        groups.append(Group(sample=sample, prompt_ids=drawn.prompt_ids, branches=branches, scores=scores))
    return groups


def noise(batch: Batch, name: str) -> torch.Tensor:
    """[N] in [0, 1), drawn from each token's place in its group, so that it travels with the group."""
    starts = batch.prompt_lengths[batch.group_ids][batch.branch_ids].tolist()
    return torch.tensor(
        [
            random.Random(f"{name}/{start}/{token}").random()
            for start, token in zip(starts, batch.token_ids.tolist(), strict=True)
        ]
    )


def ranked_batch(groups: list[Group]) -> Batch:
    batch = with_preference_pairs(Batch.from_groups(groups), groups)
    return batch.with_columns(ref_logprobs=-6 + noise(batch, "reference"))


def supervised_batch(groups: list[Group]) -> Batch:
    """A third of the tokens are a prompt's, which count 0.3 of the others."""
    batch = Batch.from_groups(groups)
    batch = batch.with_columns(loss_mask=noise(batch, "mask") > 1 / 3)
    return with_loss_weights(batch, "token_mean", prompt_weight=0.3)


def value_batch(groups: list[Group]) -> Batch:
    batch = with_loss_weights(Batch.from_groups(groups), "token_mean")
    old_values = 4 * noise(batch, "old") - 2
    return batch.with_columns(old_values=old_values, returns=old_values + noise(batch, "returns") - 0.5)


@dataclass(frozen=True)
class Case:
    objective: Objective
    batch: Callable[[list[Group]], Batch]
    head: str = "vocabulary"


CASES = {
    "sft": Case(SupervisedObjective(), supervised_batch),
    "dpo": Case(PreferenceObjective(BETA), ranked_batch),
    "ipo": Case(PreferenceObjective(BETA, kind="ipo", length_normalised=True), ranked_batch),
    "ranking": Case(RankingObjective(), ranked_batch, head="scalar"),
    "value": Case(ValueObjective(clip=0.2), value_batch, head="scalar"),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model with a tokenizer (workers load it), and a scalar one beside it."""
    root = tmp_path_factory.mktemp("objectives")
    # MLP matrices of 256 x 768 elements: ZeRO-3 leaves up to 100,000 whole on every rank.
    write_model(root / "vocabulary", tied=False, hidden_size=256, vocab_size=320)
    write_model(root / "scalar", tied=False, hidden_size=256, vocab_size=320)
    from transformers import AutoConfig

    write_scalar_model(AutoConfig.from_pretrained(root / "scalar"), root / "scalar")
    return {head: str(root / head) for head in ("vocabulary", "scalar")}


def settings(**others: Any) -> PolicyConfig:
    defaults = {"precision": "fp32", "zero_stage": 0, "learning_rate": 1e-3, "schedule": "constant"}
    return PolicyConfig(**{**defaults, "max_grad_norm": 1e6, **others})


def one_step(
    path: str, case: Case, groups: list[Group], *, row_tokens: int = 4096
) -> tuple[dict[str, float], torch.Tensor]:
    """Metrics and gradient of the first step on `groups` in this process."""
    built = Engine(path, settings(row_tokens=row_tokens), total_steps=10, head=case.head)  # type: ignore[arg-type]
    try:
        metrics = built.update(case.batch(groups), case.objective, **case.objective.options)
        return metrics, gradient_of(built)
    finally:
        built.engine.destroy()


@pytest.fixture(scope="module")
def whole(paths: dict[str, str]) -> dict[str, tuple[dict[str, float], torch.Tensor]]:
    """The step of each case with every group in one row."""
    assert len(pack(Batch.from_groups(preferences()), 4096)) == 1
    return {name: one_step(paths[case.head], case, preferences()) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_neither_rows_nor_the_order_of_groups_change_a_gradient(
    paths: dict[str, str], whole: dict[str, tuple[dict[str, float], torch.Tensor]], name: str
) -> None:
    groups = preferences()
    random.Random(1).shuffle(groups)
    assert len(pack(Batch.from_groups(groups), MANY_ROWS)) >= 3
    metrics, gradient = one_step(paths[CASES[name].head], CASES[name], groups, row_tokens=MANY_ROWS)
    expected_metrics, expected = whole[name]
    assert metrics == pytest.approx(expected_metrics, rel=1e-4, abs=1e-6)
    assert_close(gradient, expected)


# -- the same in plain PyTorch -----------------------------------------------------------------------------------


def padded(groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    """(ids [B, S], attention mask [B, S], where each answer starts, where it ends) of prompt and branch,
    right-padded.
    """
    rows = [[*group.prompt_ids, *branch.token_ids] for group in groups for branch in group.branches]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    starts = [len(group.prompt_ids) for group in groups for _ in group.branches]
    return ids, mask, starts, [len(row) for row in rows]


def pairs_by_hand(groups: list[Group]) -> list[tuple[int, int, float, float]]:
    """(winner, loser, weight, margin): InstructGPT's loss is a mean over prompts of the mean over a prompt's pairs."""
    found, start = [], 0
    for group in groups:
        places = range(start, start + len(group.branches))
        ranks = {
            place: -score.value for place, score in zip(places, group.scores, strict=True) if score.value is not None
        }
        better = [(a, b) for a, b in itertools.permutations(places, 2) if ranks[a] < ranks[b]]
        weight = 1 / (len(groups) * len(better))
        found += [(a, b, weight, group.sample.fields.get("margin", 0.0)) for a, b in better]
        start += len(group.branches)
    return found


def test_the_pairs_are_those_that_ranks_tell_apart() -> None:
    # K = 2: 1 pair. K = 3: 3. One answer above two that tie: 2. Two that tie above two that tie: 4.
    groups = preferences()
    weights = [round(1 / (weight * len(groups))) for _, _, weight, _ in pairs_by_hand(groups)]
    assert weights == [1] + 3 * [3] + 2 * [2] + 4 * [4] + [1]


def gradient_by_autograd(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_ranking_is_the_plain_pytorch_loss_on_padded_sequences(
    paths: dict[str, str], whole: dict[str, tuple[dict[str, float], torch.Tensor]]
) -> None:
    from transformers import AutoModelForSequenceClassification

    groups = preferences()
    model = AutoModelForSequenceClassification.from_pretrained(
        paths["scalar"], dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    ids, mask, _, ends = padded(groups)
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    scores = [model.score(hidden[row, end - 1])[0] for row, end in enumerate(ends)]
    loss = sum(
        -weight * logsigmoid(scores[winner] - scores[loser] - margin)
        for winner, loser, weight, margin in pairs_by_hand(groups)
    )
    metrics, gradient = whole["ranking"]
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert_close(gradient, gradient_by_autograd(loss, model))


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_preference_losses_are_those_of_plain_pytorch_on_padded_sequences(
    paths: dict[str, str], whole: dict[str, tuple[dict[str, float], torch.Tensor]], name: str
) -> None:
    groups = preferences()
    batch = ranked_batch(groups)
    reference = batch["ref_logprobs"].split(batch.branch_lengths.tolist())
    counted = batch["loss_mask"].split(batch.branch_lengths.tolist())
    model = AutoModelForCausalLM.from_pretrained(
        paths["vocabulary"], dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    ids, mask, starts, ends = padded(groups)
    logprobs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    logprobs = logprobs.gather(-1, ids[:, 1:, None])[..., 0]  # [B, S - 1]: of the token at s + 1
    ratios = []
    for row in range(len(ids)):
        differences = (logprobs[row, starts[row] - 1 : ends[row] - 1] - reference[row])[counted[row]]
        ratios.append(differences.sum() if name == "dpo" else differences.mean())
    loss = torch.zeros(())
    for winner, loser, weight, _ in pairs_by_hand(groups):  # a margin is the reward model's alone
        h = ratios[winner] - ratios[loser]
        loss = loss + weight * (-logsigmoid(BETA * h) if name == "dpo" else (h - 1 / (2 * BETA)) ** 2)
    metrics, gradient = whole[name]
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert_close(gradient, gradient_by_autograd(loss, model))


def test_supervised_loss_is_the_weighted_cross_entropy_of_padded_sequences(
    paths: dict[str, str], whole: dict[str, tuple[dict[str, float], torch.Tensor]]
) -> None:
    groups = preferences()
    batch = supervised_batch(groups)
    model = AutoModelForCausalLM.from_pretrained(
        paths["vocabulary"], dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    ids, mask, starts, ends = padded(groups)
    losses = torch.nn.functional.cross_entropy(
        model(input_ids=ids, attention_mask=mask).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
    )
    flat = torch.cat([losses[row, starts[row] - 1 : ends[row] - 1] for row in range(len(ids))])
    weights = torch.where(batch["loss_mask"], 1.0, 0.3)
    loss = (weights * flat).sum() / weights.sum()
    metrics, gradient = whole["sft"]
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    # The number that people compare is that of the answers alone, whatever the prompt counts.
    assert metrics["sft/nll"] == pytest.approx(float(flat[batch["loss_mask"]].mean()), rel=1e-5)
    assert_close(gradient, gradient_by_autograd(loss, model))


def test_value_loss_is_half_the_larger_squared_error_at_the_position_before_each_token(
    paths: dict[str, str], whole: dict[str, tuple[dict[str, float], torch.Tensor]]
) -> None:
    from transformers import AutoModelForSequenceClassification

    groups = preferences()
    batch = value_batch(groups)
    model = AutoModelForSequenceClassification.from_pretrained(
        paths["scalar"], dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    ids, mask, starts, ends = padded(groups)
    values = model.score(model.model(input_ids=ids, attention_mask=mask).last_hidden_state)[..., 0]
    flat = torch.cat([values[row, starts[row] - 1 : ends[row] - 1] for row in range(len(ids))])
    old, returns, trained = batch["old_values"], batch["returns"], batch["loss_mask"]
    near = torch.minimum(torch.maximum(flat, old - 0.2), old + 0.2)
    loss = 0.5 * torch.maximum((flat - returns) ** 2, (near - returns) ** 2)[trained].mean()
    metrics, gradient = whole["value"]
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert_close(gradient, gradient_by_autograd(loss, model))


# -- a policy that is its own reference --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # log sigmoid(0) = -ln 2, whatever the smoothing: (1 - e) ln 2 + e ln 2.
        (PreferenceObjective(0.1), math.log(2)),
        (PreferenceObjective(0.1, label_smoothing=0.2), math.log(2)),
        # (0 - 1 / (2 beta))^2 = (1 / 0.2)^2 = 25, and for beta 0.5 it is 1.
        (PreferenceObjective(0.1, kind="ipo"), 25.0),
        (PreferenceObjective(0.5, kind="ipo", length_normalised=True), 1.0),
    ],
)
def test_the_first_loss_is_known_beforehand(
    paths: dict[str, str], objective: PreferenceObjective, expected: float
) -> None:
    groups = preferences()
    built = Engine(paths["vocabulary"], settings(row_tokens=MANY_ROWS), total_steps=10)
    try:
        batch = with_preference_pairs(Batch.from_groups(groups), groups)
        batch = batch.with_columns(ref_logprobs=built.outputs(batch))
        assert objective.loss_of_reference == pytest.approx(expected)
        assert built.evaluate_loss(batch, objective)["loss"] == pytest.approx(expected, rel=1e-5)
    finally:
        built.engine.destroy()


# -- two ranks ---------------------------------------------------------------------------------------------------


class ObservedWorker(TrainedWorker):
    """A rank that can be asked for the gradient it has just used."""

    def gradient(self) -> torch.Tensor:
        """Whole; a collective."""
        return gradient_of(self._engine)


@pytest.fixture(scope="module")
def two_ranks(cluster: Cluster, paths: dict[str, str]) -> dict[str, tuple[dict[str, float], torch.Tensor]]:
    """The step of each case on two ZeRO-3 ranks: two processes that load one model after the other."""
    group = cluster.workers(ObservedWorker, [{"rank": rank, "world_size": 2} for rank in range(2)], role="policy")
    results = {}
    try:
        for name, case in CASES.items():
            model = TrainedModel(
                group, settings(num_ranks=2, zero_stage=3, row_tokens=MANY_ROWS), name=name, head=case.head
            )
            model.start(paths[case.head], total_steps=10, seed=0)
            model.ready()
            metrics = model.update([case.batch(preferences())], case.objective)
            results[name] = (metrics, group.call(ObservedWorker.gradient)[0])
            group.call(TrainedWorker.close)
    finally:
        group.shutdown()
    return results


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_compute_the_gradient_of_one(
    whole: dict[str, tuple[dict[str, float], torch.Tensor]],
    two_ranks: dict[str, tuple[dict[str, float], torch.Tensor]],
    name: str,
) -> None:
    (expected_metrics, expected), (metrics, gradient) = whole[name], two_ranks[name]
    expected_metrics = {key if "/" in key else f"{name}/{key}": value for key, value in expected_metrics.items()}
    assert metrics == pytest.approx(expected_metrics, rel=1e-4, abs=1e-6)
    assert_close(gradient, expected)
