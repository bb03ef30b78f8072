"""The cast: every role of a run, started together and ended together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.consistency import ConsistencyGate
from actors.evaluator import Evaluator
from actors.frozen import AdapterOff, Frozen, FrozenWorker, Reference
from actors.generator import Generators, GeneratorWorker, generator_arguments, start_generators
from actors.group import Group
from actors.placement import Stage
from actors.policy import Policy, PolicyWorker
from actors.rewarder import Rewarder, RewarderWorker
from core.recipes import GRPOConfig, PretrainedModelConfig
from data import DataSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who plays what."""

    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    reference: Reference | None
    generators: Generators
    rewarder: Rewarder
    evaluator: Evaluator
    gate: ConsistencyGate

    def publish(self, version: int) -> float:
        """Give the policy's weights to the generators as `version`; the gap that the gate measured, in nats."""
        expected = self.gate.expect(self.policy)
        self.policy.publish(self.generators, version)
        return self.gate.measure(expected, self.generators)


@contextlib.contextmanager
def cast(config: GRPOConfig, stage: Stage, data: DataSet, model_path: str, *, precision: str) -> Iterator[Cast]:
    """Start every role of `config` at its seat on the stage; end them all, whatever happened."""
    from transformers import AutoTokenizer

    trust = isinstance(config.model, PretrainedModelConfig) and config.model.trust_remote_code
    with contextlib.ExitStack() as stack:
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust)
        colocated = config.placement.mode == "colocated"
        on_gpu = stage.machine.device == "cuda"
        policy = Policy(
            stage.group(
                PolicyWorker,
                [{"rank": rank, "world_size": config.policy.num_ranks} for rank in range(config.policy.num_ranks)],
                role="policy",
            ),
            config.policy.model_copy(update={"precision": precision}),
        )
        stack.callback(policy.shutdown)
        updates = config.steps * config.algorithm.minibatches * config.algorithm.epochs
        policy.start(model_path, total_steps=updates, seed=config.seed, trust_remote_code=trust)

        transport = stage.machine.weight_transport(colocated=colocated)
        arguments = generator_arguments(
            model_path,
            config.generator,
            max_length=config.rollout.max_prompt_tokens
            + max(config.rollout.max_response_tokens, config.evaluation.max_response_tokens or 0),
            precision=precision,
            transport=transport,
            sleep=colocated and on_gpu,
            seed=config.seed,
            trust_remote_code=trust,
        )
        if colocated and on_gpu:
            policy.ready()  # its ranks know which GPUs the engines share
            _share_devices(arguments, policy, config.generator.tensor_parallel_size)
        group = stage.group(GeneratorWorker, arguments, role="generator", max_concurrency=1000)
        generators = Generators(group, config.generator, sleeps=colocated and on_gpu)
        stack.callback(generators.shutdown)

        reference = _reference(
            config, stage, policy, model_path, precision=precision, offload=colocated and on_gpu, trust=trust
        )
        if reference is not None:
            stack.callback(reference.shutdown)
        rewarder = Rewarder(config.rewards, _reward_workers(config, stage))
        stack.callback(rewarder.shutdown)
        evaluator = Evaluator(
            data.name,
            data.heldout[: config.evaluation.num_samples],
            tokenizer,
            generators,
            Rewarder(config.evaluation.metrics),
            max_prompt_tokens=config.rollout.max_prompt_tokens,
            max_response_tokens=config.evaluation.max_response_tokens or config.rollout.max_response_tokens,
            temperature=config.evaluation.temperature,
            seed=config.seed,
            stop=config.rollout.stop,
            timeout_s=config.rollout.timeout_s,
        )
        gate = ConsistencyGate([ids for _, ids in evaluator.prompts], config.consistency, precision=precision)
        start_generators(group, config.generator)
        policy.ready()
        if isinstance(reference, Frozen):
            reference.ready(config.policy.init_timeout_s)
        policy.connect(generators, transport=transport, timeout_s=config.generator.sync_timeout_s)
        yield Cast(
            tokenizer=tokenizer,
            policy=policy,
            reference=reference,
            generators=generators,
            rewarder=rewarder,
            evaluator=evaluator,
            gate=gate,
        )


def _share_devices(arguments: list[dict[str, object]], policy: Policy, width: int) -> None:
    """Engine i sees the GPUs of policy ranks i x width and following, which Ray gave to those."""
    devices = [gpus[0] for _, gpus in policy.group.call(PolicyWorker.devices)]
    for index, engine in enumerate(arguments):
        engine["visible_devices"] = ",".join(devices[index * width : (index + 1) * width])


def _reference(
    config: GRPOConfig, stage: Stage, policy: Policy, model_path: str, *, precision: str, offload: bool, trust: bool
) -> Reference | None:
    if not config.kl_needs_reference:
        return None
    if config.reference.source == "adapter_off":
        return AdapterOff(policy)
    ranks = config.reference.num_ranks
    frozen = Frozen(
        stage.group(FrozenWorker, [{"rank": rank, "world_size": ranks} for rank in range(ranks)], role="reference")
    )
    frozen.start(
        model_path,
        precision=precision,
        row_tokens=config.policy.row_tokens,
        logits_chunk=config.policy.logits_chunk,
        offload=offload,
        trust_remote_code=trust,
    )
    return frozen


def _reward_workers(config: GRPOConfig, stage: Stage) -> Group[RewarderWorker] | None:
    if config.rewarder.num_workers == 0:
        return None
    arguments = [{"configs": config.rewards}] * config.rewarder.num_workers
    return stage.group(RewarderWorker, arguments, role="rewarder", max_concurrency=config.rewarder.max_concurrency)
