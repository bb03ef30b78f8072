"""Two ZeRO-3 ranks whose rows need different numbers of logits chunks are one plain trainer, and never wait for each
other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.actors.small import SMALL, VOCAB, random_group, with_targets, write_weights
from troupe.actors.placement import Cluster
from troupe.actors.trained import TrainedWorker
from troupe.algorithms.objective import Objective, PolicyObjective, PreferenceObjective, SupervisedObjective
from troupe.algorithms.packing import Batch, pack
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.models import LoraConfig, PolicyConfig
from troupe.hardware import set_up_process
from troupe.records import Group

TOKENS_PER_CHUNK, ROW_TOKENS, DEADLINE_S = 12, 64, 240
BETAS = (0.9, 0.99)
SETTINGS = {
    "zero_stage": 3,
    "num_ranks": 2,
    "precision": "fp32",
    "learning_rate": 1e-3,
    "betas": BETAS,
    "schedule": "constant",
    "max_grad_norm": 1e9,
    "row_tokens": ROW_TOKENS,
    "logits_chunk": TOKENS_PER_CHUNK * VOCAB,
}
ON_THE_HEAD = LoraConfig(rank=4, alpha=8, target_modules=["q_proj", "lm_head"])
POLICY = PolicyObjective(AlgorithmConfig(clip_low=0.5, clip_high=50.0, entropy_coef=0.1))
CASES: dict[str, tuple[bool, Objective, dict[str, Any]]] = {
    # (tied head, what is minimised, settings)
    "tied": (True, POLICY, {}),
    "untied": (False, SupervisedObjective(), {}),
    "preferences": (True, PreferenceObjective(beta=0.1), {}),
    "adapters": (True, SupervisedObjective(), {"lora": LoraConfig(rank=4, alpha=8)}),
    "adapter on the head": (False, POLICY, {"lora": ON_THE_HEAD, "gradient_checkpointing": True}),
    "checkpointing": (True, PreferenceObjective(beta=0.1), {"gradient_checkpointing": True}),
    "offload": (False, SupervisedObjective(), {"offload": "optimizer_and_parameters"}),
    "frozen layers": (False, POLICY, {"frozen_layers": 0.5}),
}


def batches() -> dict[str, list[Group]]:
    """Groups of two branches, the first better than the second."""
    small = [random_group(12, [1, 9], name=str(index)) for index in range(4)]
    return {
        "chunks": [random_group(5, [30, 10], name="long"), random_group(30, [6, 4], name="short")],
        "rows": [random_group(20, [30, 30]), *small],
        "one group": [random_group(5, [20, 20], name="alone")],
    }


def as_batch(groups: list[Group]) -> Batch:
    batch = with_targets(groups)
    ranks = torch.cat([torch.full((length,), float(i % 2)) for i, length in enumerate(batch.branch_lengths.tolist())])
    weights = torch.full((batch.num_tokens,), 1 / len(groups))
    return batch.with_columns(ranks=ranks, group_weights=weights, ref_logprobs=batch["old_logprobs"])


class Compared(TrainedWorker):
    """A rank that makes the same steps as a shard of an engine and, on whole batches, in plain PyTorch."""

    def join(self, hosts: Sequence[str], port: int) -> None:
        set_up_process(rank=self.rank, hosts=hosts, master_port=port)
        from troupe.actors.process_group import prepare_extension

        prepare_extension()

    def compare(self, path: str, config: PolicyConfig, objective: Objective) -> dict[str, Any]:
        """(plain, engine) of the first log-probabilities and gradient, and of each batch's held-out and training
        loss.
        """
        from troupe.actors.engine import Engine

        every = {name: as_batch(groups) for name, groups in batches().items()}
        plain = _plain_steps(path, config, objective, every)
        engine = Engine(path, config, total_steps=10, keep_start=config.frozen_layers > 0)
        found: dict[str, Any] = {"losses": []}
        for batch in every.values():
            shard = batch.select(batch.split(2)[self.rank])
            logprobs = engine.outputs(shard.without_columns())
            measured = engine.evaluate_loss(shard, objective, **objective.options)["loss"]
            found["losses"].append((measured, engine.update(shard, objective, **objective.options)["loss"]))
            found.setdefault("logprobs", (batch.tokens_of(batch.split(2)[self.rank]), logprobs))
            found.setdefault("gradient", _first_moments(engine) / (1 - BETAS[0]))
        if config.lora or config.frozen_layers:  # which know the model that they started from
            first = next(iter(every.values()))
            with engine.at_start():
                logprobs = engine.outputs(first.select(first.split(2)[self.rank]).without_columns())
            torch.testing.assert_close(logprobs, found["logprobs"][1], atol=2e-5, rtol=0)
        engine.close()
        return {name: (plain[name], found[name]) for name in plain}


def _first_moments(engine: Any) -> torch.Tensor:
    from deepspeed.utils import safe_get_full_optimizer_state

    trained = [parameter for parameter in engine.packed.parameters() if parameter.requires_grad]
    return torch.cat([safe_get_full_optimizer_state(parameter, "exp_avg").flatten() for parameter in trained])


def _plain_steps(path: str, config: PolicyConfig, objective: Objective, every: dict[str, Batch]) -> dict[str, Any]:
    """One row for a whole batch, all of its logits at once, AdamW."""
    from troupe.actors.adapters import with_adapter
    from troupe.actors.engine import _freeze
    from troupe.algorithms.loading import load_model
    from troupe.algorithms.logprobs import PackedModel

    torch.manual_seed(0)  # as the engine does: adapters start from random numbers
    model = load_model(path, "fp32")
    if config.lora is not None:
        model = with_adapter(model, config.lora, "vocabulary")
    if config.frozen_layers:
        _freeze(model, config.frozen_layers)
    packed = PackedModel(model, logits_chunk=2**40).train()
    trained = [parameter for parameter in packed.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=BETAS, weight_decay=0.0)
    found: dict[str, Any] = {"losses": []}
    for batch in every.values():
        (row,) = pack(batch, 10**6)
        branch_ids = batch.branch_ids
        whole = {**batch.columns, "branch_ids": branch_ids, "group_ids": batch.group_ids[branch_ids]}
        outputs = packed(row, **objective.options)
        loss, _ = objective(*outputs, {name: column[row.token_index] for name, column in whole.items()})
        optimizer.zero_grad()
        loss.backward()
        found["losses"].append(loss.item())
        found.setdefault("logprobs", torch.zeros(batch.num_tokens).index_copy_(0, row.token_index, outputs[0].detach()))
        found.setdefault("gradient", torch.cat([parameter.grad.flatten() for parameter in trained]))
        optimizer.step()
    return found


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """A model with a tied head and one without."""
    directory = tmp_path_factory.mktemp("chunks")
    configs = {tied: copy.deepcopy(SMALL) for tied in (True, False)}
    for tied, config in configs.items():
        config.tie_word_embeddings = tied
    return {tied: write_weights(config, directory / str(tied)) for tied, config in configs.items()}


@pytest.fixture(scope="module")
def ranks(cluster: Cluster) -> Any:
    group = cluster.workers(Compared, [{"rank": rank, "world_size": 2} for rank in range(2)], role="policy")
    places = group.gather(group.start(Compared.address), DEADLINE_S)
    group.gather(group.start(Compared.join, [host for host, _ in places], places[0][1]), DEADLINE_S)
    yield group
    group.shutdown()


def test_the_batches_give_the_ranks_different_numbers_of_chunks_of_rows_and_none() -> None:
    def chunks(groups: list[Group]) -> list[list[int]]:
        batch = Batch.from_groups(groups)
        rows = [pack(batch.select(shard), ROW_TOKENS) if shard else [] for shard in batch.split(2)]
        return [[-(-len(row.target_ids) // TOKENS_PER_CHUNK) for row in part] for part in rows]

    assert {name: chunks(groups) for name, groups in batches().items()} == {
        "chunks": [[4], [1]],  # 40 tokens to read and 10, 12 to a chunk
        "rows": [[5], [2, 2]],
        "one group": [[4], []],
    }


@pytest.mark.parametrize("case", CASES)
def test_ranks_with_different_numbers_of_chunks_make_the_plain_pytorch_step(
    ranks: Any, paths: dict[bool, str], case: str
) -> None:
    tied, objective, settings = CASES[case]
    calls = ranks.start(Compared.compare, paths[tied], PolicyConfig(**SETTINGS, **settings), objective)
    for compared in ranks.gather(calls, DEADLINE_S, case):
        expected, (index, logprobs) = compared["logprobs"]
        torch.testing.assert_close(logprobs, expected[index], atol=2e-5, rtol=0)
        expected, gradient = compared["gradient"]
        assert (gradient - expected).norm() <= 2e-6 * expected.norm()
        expected, losses = compared["losses"]
        # (held-out loss, loss of the step) of every batch; those behind the first have the steps before them in it.
        assert losses == [pytest.approx((loss, loss), rel=1e-4, abs=1e-6) for loss in expected]
