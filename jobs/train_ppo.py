"""PPO: the GRPO job's rollouts, with a critic as the baseline of every token.

python jobs/train_ppo.py [recipe.yaml ...] [section.field=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.algorithms.advantage_stage import with_gae, with_importance
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.program import run_program
from troupe.jobs.train_grpo import rehearse, step_seed, train
from troupe.records import Group
from troupe.runs.run import Run
from troupe.training.roles import Roles


def train_ppo(config: PPOConfig) -> None:
    train(config, learn_with_critic)


def learn_with_critic(
    config: GRPOConfig,
    run: Run,
    roles: Roles,
    batch: Batch,
    groups: Sequence[Group],
    settings: AlgorithmConfig,
    step: int,
) -> None:
    """One step of learning: values, token rewards, advantages, then policy and critic on the same minibatches."""
    assert isinstance(config, PPOConfig)
    assert roles.critic is not None
    limit, seed = config.rollout.max_response_tokens, step_seed(config.seed, step)
    with run.timed("values"):
        batch = batch.with_columns(old_values=roles.critic.values(batch))
    with run.timed("advantage"):
        batch, metrics = with_gae(batch, groups, settings, config.gae, max_response_tokens=limit)
        batch, mismatch = with_importance(batch, settings)
        run.log({**metrics, **mismatch})
    with run.timed("update"):
        run.log(
            roles.policy.update(
                batch, settings, temperature=config.rollout.temperature, max_response_tokens=limit, seed=seed
            )
        )
    with run.timed("critic_update"):
        run.log(roles.critic.update(batch, settings, max_response_tokens=limit, seed=seed))


if __name__ == "__main__":
    run_program(train_ppo, PPOConfig, "jobs/train_ppo.py", rehearse=rehearse)
