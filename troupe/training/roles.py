"""The roles of a run, started together and ended together.

`RoleStarter` starts one role at a time in its placement; `start_roles` starts those of a run that samples. Starting a
role returns at once and loading goes on in its processes, so that roles load side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from troupe.actors.consistency import LogprobCheck
from troupe.actors.critic import Critic
from troupe.actors.frozen import FrozenModel, FrozenWorker, PolicyAtStart, Reference
from troupe.actors.generator import GeneratorWorker
from troupe.actors.generators import Generators, generator_arguments, start_generators
from troupe.actors.perplexity_reward import PerplexityReward, ScorerPlan, plan_scorer
from troupe.actors.placement import Cluster
from troupe.actors.policy import Policy, PolicyWorker
from troupe.actors.reward_model import RewardModel, require_same_tokenizer
from troupe.actors.rewarder import Rewarder, RewarderWorker, RewardPart
from troupe.actors.trained import TrainedModel, TrainedWorker
from troupe.actors.workers import Workers
from troupe.agents.episodes import AgentEpisodes
from troupe.chat import ChatForm, load_form, load_tokenizer
from troupe.config.algorithm import PerplexityRewardConfig
from troupe.config.evaluation import AnsweringConfig
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.models import GeneratorConfig, ModelConfig, PolicyConfig, PretrainedModelConfig, RewardModelConfig
from troupe.errors import ConfigError, PeerError
from troupe.processes.waiting import waiting
from troupe.records import Sample
from troupe.resolve import handed_over
from troupe.training.episodes import Episodes
from troupe.training.evaluator import Evaluator
from troupe.training.recovery import Recovery

if TYPE_CHECKING:
    from troupe.training.context import RunContext

CRITIC = "critic"
"""The critic's directory inside a checkpoint; the policy lies beside it, where a model is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The models and services of a run that samples and learns."""

    form: ChatForm
    policy: Policy
    generators: Generators
    rewarder: Rewarder
    evaluator: Evaluator
    logprob_check: LogprobCheck
    reference: Reference | None = None
    critic: Critic | None = None
    episodes: Episodes | AgentEpisodes | None = None
    """Answers of several turns, where the config has an environment, tools or an agent."""
    recovery: Recovery
    transport: str

    def publish(self, version: int) -> dict[str, float]:
        """Give the policy's weights to the generators as `version`; what the gate measured."""
        self.recovery.version = version
        while True:
            try:
                measured = self.logprob_check.publish(self.policy, self.generators, version)
            except PeerError as error:
                self._restart_generators(error)
                self.connect()
            else:
                self.generators.resubmit()
                return measured

    def recover(self, error: PeerError) -> None:
        """Mend what `error` names while answers are waited for; raises it where that is not enough."""
        if error.role == "rewarder":
            self.recovery.allow(error)
            self.rewarder.restart(error.ranks)
        else:
            self._restart_generators(error)
            self.connect()
            self.publish(self.recovery.version)

    def _restart_generators(self, error: PeerError) -> None:
        if error.role != "generator" or not self.generators.waits_for_lost:
            raise error
        self.recovery.allow(error)
        with waiting("generators start again"):
            self.generators.restart(error.ranks)

    def connect(self) -> None:
        """Open the way for weights from the policy to the generators, also after either was started again; a lost
        machine may have taken both along, so that engines start again here, too."""
        while True:
            try:
                return self.policy.connect(
                    self.generators, transport=self.transport, timeout_s=self.generators.config.sync_timeout_s
                )
            except PeerError as error:
                self._restart_generators(error)

    def restart_trained(self, error: PeerError, *, from_checkpoint: bool) -> None:
        """Start the ranks of policy or critic again that `error` names; without a checkpoint both begin anew."""
        self.recovery.allow(error)
        with waiting(f"the {error.role} starts again"):
            if self.critic is not None and (error.role == "critic" or not from_checkpoint):
                self.critic.restart()
            if error.role == "policy" or not from_checkpoint:
                self.policy.restart()
                self.connect()

    def save(self, path: Path) -> None:
        """Write every trained model into a checkpoint."""
        self.policy.save(str(path))
        if self.critic is not None:
            self.critic.save(str(path / CRITIC))

    @property
    def checkpoint_bytes(self) -> int:
        """About what `save` writes."""
        critic = 0 if self.critic is None else self.critic.facts["checkpoint_bytes"]
        return int(self.policy.facts["checkpoint_bytes"] + critic)

    def load(self, path: Path) -> None:
        """Continue every trained model from a checkpoint."""
        self.policy.load(str(path))
        if self.critic is not None:
            self.critic.load(str(path / CRITIC))


class RoleStarter:
    """Starts roles of one run; `stack` ends them."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        cluster: Cluster,
        model: ModelConfig,
        model_path: str,
        *,
        colocated: bool,
        precision: str,
        seed: int,
    ) -> None:
        self._stack, self._cluster, self.model_path = stack, cluster, model_path
        self.precision, self.seed = precision, seed
        self.trust = isinstance(model, PretrainedModelConfig) and model.trust_remote_code
        self._chat = model.chat_settings
        self.shares_gpus = colocated and cluster.machine.device == "cuda"
        self.transport = cluster.machine.weight_transport(colocated=colocated)

    @classmethod
    def of(cls, config: Any, context: RunContext, stack: contextlib.ExitStack) -> RoleStarter:
        """Return the starter of a training job's roles."""
        return cls(
            stack,
            context.cluster,
            config.model,
            context.model_path,
            colocated=config.placement.mode == "colocated",
            precision=context.precision,
            seed=config.seed,
        )

    @cached_property
    def form(self) -> ChatForm:
        return load_form(self.model_path, self._chat, trust_remote_code=self.trust)

    def policy(
        self, config: PolicyConfig, *, total_steps: int, name: str = "policy", keep_start: bool = False
    ) -> Policy:
        """Return the policy, loading the starting model; `name` goes before its metrics. `keep_start`: see `Engine`."""
        group = self._cluster.workers(PolicyWorker, _ranks(config.num_ranks), role="policy")
        policy = Policy(group, config.model_copy(update={"precision": self.precision}), name=name)
        self._start(policy, self.model_path, total_steps=total_steps, trust=self.trust, keep_start=keep_start)
        return policy

    def trained(
        self, config: PolicyConfig, *, name: str, head: str, total_steps: int, model_path: str | None = None
    ) -> TrainedModel[TrainedWorker]:
        """Return a model that is trained and never sampled from; it sits where a policy would."""
        group = self._cluster.workers(TrainedWorker, _ranks(config.num_ranks), role="policy")
        trained = TrainedModel(group, config.model_copy(update={"precision": self.precision}), name=name, head=head)
        self._start(trained, model_path or self.model_path, total_steps=total_steps, trust=self.trust)
        return trained

    def critic(self, config: PPOConfig, *, total_steps: int) -> Critic:
        """Return the critic, loading what `critic.start` names."""
        settings = config.critic
        starts = {"policy": self.model_path, "reward_model": config.reward_model.path if config.reward_model else ""}
        path = starts.get(settings.start, settings.start)
        require_same_tokenizer(self.form, load_form(path, trust_remote_code=self.trust), path, "critic.start")
        group = self._cluster.workers(TrainedWorker, _ranks(settings.num_ranks), role="critic")
        critic = Critic(group, settings.model_copy(update={"precision": self.precision}))
        self._start(critic, path, total_steps=total_steps, trust=self.trust)
        return critic

    def _start(
        self, trained: TrainedModel[Any], path: str, *, total_steps: int, trust: bool, keep_start: bool = False
    ) -> None:
        self._stack.callback(trained.shutdown)
        trained.start(
            path,
            total_steps=total_steps,
            seed=self.seed,
            trust_remote_code=trust,
            keep_start=keep_start,
            chat=self.form.record,
        )

    def generators(self, config: GeneratorConfig, *, max_length: int, policy: Policy) -> Generators:
        """Return the engines, not yet started: `start_generators` waits for them."""
        arguments = generator_arguments(
            self.model_path,
            config,
            max_length=max_length,
            precision=self.precision,
            transport=self.transport,
            sleep=self.shares_gpus,
            seed=self.seed,
            trust_remote_code=self.trust,
        )
        if self.shares_gpus:
            policy.ready()  # its ranks know which GPUs the engines share
            _share_devices(arguments, policy, config.tensor_parallel_size)
        group = self._cluster.workers(GeneratorWorker, arguments, role="generator", max_concurrency=1000)
        generators = Generators(group, config, sleeps=self.shares_gpus)
        self._stack.callback(generators.shutdown)
        return generators

    def frozen(
        self, path: str, *, role: str, num_ranks: int, precision: str, row_tokens: int, scalar: bool, trust: bool
    ) -> FrozenModel:
        """Return a frozen model, loading."""
        workers = self._cluster.workers(FrozenWorker, _ranks(num_ranks), role=role, stateless=True)
        frozen = FrozenModel(workers, scalar=scalar)
        self._stack.callback(frozen.shutdown)
        frozen.start(
            path, precision=precision, row_tokens=row_tokens, offload=self.shares_gpus, trust_remote_code=trust
        )
        return frozen

    def reward_model(self, config: RewardModelConfig, *, row_tokens: int, timeout_s: float) -> RewardModel:
        """Return the frozen reward model, loaded; it must read the policy's tokens."""
        trust = config.trust_remote_code
        require_same_tokenizer(
            self.form, load_form(config.path, trust_remote_code=trust), config.path, "reward_model.path"
        )
        frozen = self.frozen(
            config.path,
            role="reward_model",
            num_ranks=config.num_ranks,
            precision=self._cluster.machine.precision(config.precision),
            row_tokens=row_tokens,
            scalar=True,
            trust=trust,
        )
        model = RewardModel(frozen, config, self.form)
        self._stack.callback(model.shutdown)
        frozen.ready(timeout_s)
        return model

    def scorer_plan(
        self, config: PerplexityRewardConfig, samples: Sequence[Sample], *, complete: bool = True
    ) -> ScorerPlan:
        """Return what the perplexity reward will ask, checked; nothing is started."""
        path, trust = (self.model_path, self.trust) if config.path is None else (config.path, config.trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code=trust)
        precision = self._cluster.machine.precision(config.precision)
        return plan_scorer(config, path, tokenizer, samples, precision=precision, complete=complete)

    def scorer(self, plan: ScorerPlan, *, row_tokens: int) -> FrozenModel:
        """Return the frozen model of the perplexity reward, loading."""
        return self.frozen(
            plan.path,
            role="perplexity",
            num_ranks=plan.config.num_ranks,
            precision=plan.precision,
            row_tokens=row_tokens,
            scalar=False,
            trust=self.trust if plan.config.path is None else plan.config.trust_remote_code,
        )

    def perplexity_reward(self, plan: ScorerPlan, frozen: FrozenModel) -> PerplexityReward:
        """Return the perplexity reward over a scorer, which may be the reference, too."""
        reward = PerplexityReward(frozen, plan)
        self._stack.callback(reward.shutdown)
        return reward


@contextlib.contextmanager
def start_roles(config: GRPOConfig, context: RunContext) -> Iterator[Roles]:
    """Start every role of `config` in its placement; end them all, whatever happened."""
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as starting:
        starting.enter_context(waiting("the roles start"))
        starter = RoleStarter.of(config, context, stack)
        data, cluster, precision = context.data, context.cluster, context.precision
        limit, timeout_s = config.rollout, config.policy.init_timeout_s
        sets = data.heldout_sets(config.evaluation.num_samples)
        heldout = list({sample.sample_id: sample for samples in sets.values() for sample in samples}.values())
        asked = config.perplexity_reward
        plan = starter.scorer_plan(asked, [*data.train, *heldout]) if asked is not None else None
        updates = config.steps * config.algorithm.minibatches * config.algorithm.epochs
        keep_start = config.kl_needs_reference and config.reference.source == "shared_trunk"
        policy = starter.policy(config.policy, total_steps=updates, keep_start=keep_start)
        critic = starter.critic(config, total_steps=updates) if isinstance(config, PPOConfig) else None
        longest = max(limit.max_response_tokens, config.evaluation.max_response_tokens or 0)
        max_length = limit.max_prompt_tokens + longest
        generators = starter.generators(config.generator, max_length=max_length, policy=policy)
        episodes = start_episodes(config, generators, starter.form, max_length=max_length)
        if episodes is not None:
            stack.callback(episodes.shutdown)
        reference = _reference(config, starter, policy)
        row_tokens = config.policy.row_tokens
        parts: list[RewardPart] = []
        if config.reward_model is not None:
            parts.append(starter.reward_model(config.reward_model, row_tokens=row_tokens, timeout_s=timeout_s))
        if plan is not None:
            shared = isinstance(reference, FrozenModel) and config.scorer_is_reference
            scorer = reference if shared else starter.scorer(plan, row_tokens=row_tokens)
            assert isinstance(scorer, FrozenModel)
            scorer.ready(timeout_s)
            parts.append(starter.perplexity_reward(plan, scorer))
        rewarder = Rewarder(config.rewards, _reward_workers(config, cluster), parts=parts, limits=config.rewarder)
        stack.callback(rewarder.shutdown)
        metrics = Rewarder(config.evaluation.metrics, parts=parts, limits=config.rewarder)
        stack.callback(metrics.shutdown)
        evaluator = Evaluator(
            sets,
            starter.form,
            generators,
            metrics,
            max_prompt_tokens=limit.max_prompt_tokens,
            max_response_tokens=config.evaluation.max_response_tokens or limit.max_response_tokens,
            sampling=config.evaluation,
            seed=config.seed,
            stop=limit.stop,
            timeout_s=limit.timeout_s,
            answers=episodes,
        )
        logprob_check = LogprobCheck(
            [ids for _, ids in evaluator.prompts],
            config.consistency,
            precision=precision,
            max_length=max_length,
            seed=config.seed,
        )
        start_generators(generators.workers, config.generator)
        generators.waits_for_lost = not cluster.inline
        policy.ready()
        if critic is not None:
            critic.ready()
        if isinstance(reference, FrozenModel):
            reference.ready(timeout_s)
        roles = Roles(
            form=starter.form,
            policy=policy,
            generators=generators,
            rewarder=rewarder,
            evaluator=evaluator,
            logprob_check=logprob_check,
            reference=reference,
            critic=critic,
            episodes=episodes,
            recovery=Recovery(context.run, limit=config.run.max_restarts),
            transport=starter.transport,
        )
        roles.connect()
        evaluator.recover = roles.recover
        starting.close()
        yield roles


def start_episodes(
    config: GRPOConfig | AnsweringConfig, generators: Generators, form: ChatForm, *, max_length: int
) -> Episodes | AgentEpisodes | None:
    """Start what has answers of several turns made: a config's agent, or its environment and tools; None without.

    `max_length`: tokens of the longest prompt and answer that the engines take.
    """
    if config.agent is not None:
        return AgentEpisodes(config.agent, generators, form, max_length=max_length)
    return None if config.dialogue is None else Episodes(config.dialogue, generators, form, config.tools)


def _ranks(count: int) -> Sequence[dict[str, int]]:
    return [{"rank": rank, "world_size": count} for rank in range(count)]


def _share_devices(arguments: list[dict[str, object]], policy: Policy, width: int) -> None:
    """Engine i sees the GPUs of policy ranks i x width and following, which Ray gave to those."""
    places = policy.workers.call(PolicyWorker.devices)
    for index, engine in enumerate(arguments):
        own = places[index * width : (index + 1) * width]
        if len({machine for machine, _ in own}) > 1:
            raise ConfigError(
                f"generator.tensor_parallel_size ({width}) puts engine {index} on the GPUs of several machines, which "
                "colocated engines cannot use; lower it, or set placement.mode: separate"
            )
        engine["visible_devices"] = ",".join(gpus[0] for _, gpus in own)


def _reference(config: GRPOConfig, starter: RoleStarter, policy: Policy) -> Reference | None:
    if not config.kl_needs_reference:
        return None
    if config.reference.source != "own_weights":
        return PolicyAtStart(policy)
    return starter.frozen(
        starter.model_path,
        role="reference",
        num_ranks=config.reference.num_ranks,
        precision=starter.precision,
        row_tokens=config.policy.row_tokens,
        scalar=False,
        trust=starter.trust,
    )


def _reward_workers(config: GRPOConfig, cluster: Cluster) -> Workers[RewarderWorker] | None:
    if config.rewarder.num_workers == 0:
        return None
    worker = {"configs": config.rewards, "limits": config.rewarder, "functions": handed_over()}
    arguments = [worker] * config.rewarder.num_workers
    return cluster.workers(
        RewarderWorker,
        arguments,
        role="rewarder",
        max_concurrency=config.rewarder.max_concurrency,
        stateless=True,
    )
