"""Held-out answers of a model that is trained without sampling: an engine gets its weights for each evaluation."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

from troupe.actors.consistency import LogprobCheck
from troupe.actors.generators import Generators, start_generators
from troupe.actors.policy import Policy
from troupe.actors.rewarder import Rewarder
from troupe.config.models import ConsistencyConfig
from troupe.config.supervised import GeneratingConfig, GenerationConfig
from troupe.data import DataSet
from troupe.runs.run import Run
from troupe.training.evaluator import Evaluation, Evaluator
from troupe.training.roles import RoleStarter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutAnswers:
    """A policy, its engines, and what they are asked."""

    policy: Policy
    generators: Generators
    evaluator: Evaluator
    logprob_check: LogprobCheck

    @staticmethod
    def place(
        stack: contextlib.ExitStack,
        starter: RoleStarter,
        config: GeneratingConfig,
        generation: GenerationConfig,
        data: DataSet,
        policy: Policy,
    ) -> HeldOutAnswers:
        """Place the engines; `start` waits for them."""
        metrics = Rewarder(generation.metrics)
        stack.callback(metrics.shutdown)
        generators = starter.generators(config.generator, max_length=config.max_length, policy=policy)
        evaluator = Evaluator(
            data.heldout_sets(generation.num_samples),
            starter.form,
            generators,
            metrics,
            max_prompt_tokens=config.max_length - generation.max_response_tokens,
            max_response_tokens=generation.max_response_tokens,
            sampling=generation,
            seed=config.seed,
        )
        if evaluator.num_too_long:
            log.warning(
                "%d held-out prompts of %s have no room for an answer of generation.max_response_tokens (%d) within "
                "max_length (%d) and are not answered",
                *(evaluator.num_too_long, data.name, generation.max_response_tokens, config.max_length),
            )
        prompts = [ids for _, ids in evaluator.prompts]
        logprob_check = LogprobCheck(
            prompts,
            ConsistencyConfig(),
            precision=starter.precision,
            max_length=config.max_length,
            seed=config.seed,
        )
        return HeldOutAnswers(policy=policy, generators=generators, evaluator=evaluator, logprob_check=logprob_check)

    def start(self, transport: str) -> None:
        """Start the engines and open the way for the policy's weights, once it is loaded."""
        settings = self.generators.config
        start_generators(self.generators.workers, settings)
        self.policy.ready()
        self.policy.connect(self.generators, transport=transport, timeout_s=settings.sync_timeout_s)

    def evaluate(self, run: Run, step: int) -> Evaluation:
        """Publish the weights after `step` and answer the held-out prompts with them."""
        with run.timed("publish"):
            run.log(self.logprob_check.publish(self.policy, self.generators, step))
        with run.timed("generate"):
            evaluation = self.evaluator.evaluate(run.watch_calls(step, "evaluation"))
            for name, rows in evaluation.rows().items():
                run.log_answers(step, name, rows)
        self.generators.sleep()
        return evaluation
