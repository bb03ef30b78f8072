"""GRPO: sample groups of answers, score them, and make the better ones of each group more likely.

    python jobs/train_grpo.py [recipe.yaml ...] [section.field=value ...]

Without a recipe it is the quickstart: word problems, a model made here, two CPU cores. `--help` lists the
sections, `--dry-run` checks a recipe without starting anything. RLOO and PPO are this job with other settings and, for
PPO, another way to learn.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from troupe.actors.placement import placement_table
from troupe.actors.reward_model import located
from troupe.algorithms.advantage_stage import with_advantages, with_importance
from troupe.algorithms.kl_coefficient import KLCoefficient
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.program import run_program
from troupe.config.rollout import EvaluationConfig
from troupe.data import PromptStream, position_in
from troupe.environments import build_environment
from troupe.errors import PlayError, RewardError
from troupe.files import read_json
from troupe.records import Group
from troupe.runs.checkpoint import save_state
from troupe.runs.model_paths import locate
from troupe.runs.run import Run
from troupe.training.perform import RunContext, perform
from troupe.training.preparation import Prepared, prepare
from troupe.training.roles import Roles, cast
from troupe.training.rollouts import Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MOSTLY_CUT = 0.9
"""Share of answers cut at their limit above which something is wrong with their ends."""

Learn = Callable[[GRPOConfig, Run, Roles, Batch, Sequence[Group], AlgorithmConfig, int], None]
"""(recipe, run, cast, the scored groups as a batch with `old_logprobs`, the groups, the settings of this step, step)."""


def prepare_answers(config: GRPOConfig) -> tuple[GRPOConfig, Prepared]:
    """The recipe with the paths of its models, and its data: all that is found out before the first process."""
    if config.environment is not None:
        build_environment(config.environment).require_metric(config.evaluation.best)
    if config.reward_model is not None:
        config = config.model_copy(update={"reward_model": located(config.reward_model)})
    if config.perplexity_reward is not None and config.perplexity_reward.path is not None:
        found = {"path": locate(config.perplexity_reward.path)}
        config = config.model_copy(update={"perplexity_reward": config.perplexity_reward.model_copy(update=found)})
    return config, prepare(config, rewards=config.rewards, metrics=config.evaluation.metrics)


def rehearse(config: GRPOConfig) -> list[str]:
    """What a dry run shows of it."""
    return prepare_answers(config)[1].lines()


def train(config: GRPOConfig, learn: Learn | None = None) -> None:
    config, prepared = prepare_answers(config)
    perform(
        config,
        prepared,
        table=lambda device: placement_table(config, device=device),
        cast=lambda scene: cast(config, scene.cluster, scene.data, scene.model_path, precision=scene.precision),
        play=functools.partial(run_loop, config, learn or learn_from_groups),
        init_timeout_s=config.policy.init_timeout_s,
    )


def run_loop(config: GRPOConfig, learn: Learn, scene: RunContext, roles: Roles) -> None:
    """The training loop: every step from the last checkpoint, or from the beginning, to the end."""
    run, kl = scene.run, KLCoefficient(config.algorithm.kl)
    first, position, owed = resume(run, roles, kl, num_samples=len(scene.data.train))
    rollouts = Rollouts(
        PromptStream(scene.data.train, config.seed, position=position),
        roles.tokenizer,
        roles.generators,
        roles.rewarder,
        config.rollout,
        seed=config.seed,
        last_step=config.steps,
        requires_group=config.algorithm.advantage not in ("reinforce", "gae"),
        watch=lambda step: run.watch_calls(step, "rollout"),
        answers=roles.episodes,
    )
    with run.timed("publish"):
        run.log(roles.publish(first))
    if first == 0:
        evaluate(config.evaluation, run, roles, step=0)
        run.end_step(0)
    elif owed:
        finish(config, run, roles, first, last=first >= config.steps)
    # From one step's prompts handed to the engines to the next one's, with whatever was answered in between.
    since, evaluated = time.perf_counter(), 0
    for step in run.steps(first + 1, config.steps):
        with run.timed("rollout"), saved_if_stopped(run, roles, step - 1, rollouts, kl):
            rollout = rollouts.collect(step)
            run.log(rollout.metrics)
            run.log_rollouts(step, rollout.groups, config.run.samples_per_step)
        if step == first + 1:
            tell_of_cut_answers(run, rollout.metrics, config, end_tokens(roles.tokenizer, scene.model_path))
        if rollout.groups:
            batch = read(config, run, roles, rollout.groups)
            learn(config, run, roles, batch, rollout.groups, kl.within(config.algorithm), step)
            run.log(kl.follow(batch))
        else:
            run.event("no_signal", reason="every group's answers have equal rewards; the weights stay as they are")
        last = run.is_last(step)
        if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            save(run, roles, step, rollouts, kl)  # before the policy leaves a shared device to the generators
        with run.timed("publish"):
            run.log(roles.publish(step))
            rollouts.ahead(step)
        now = time.perf_counter()
        run.log({"tokens_per_second": (rollout.metrics["rollout/tokens"] + evaluated) / (now - since)})
        since = now
        evaluated = finish(config, run, roles, step, last=last)


def finish(config: GRPOConfig, run: Run, roles: Roles, step: int, *, last: bool) -> int:
    """Evaluate where it is due and write the step's line; the tokens that the evaluation answered. A step whose process
    died between its checkpoint and here owes this, and the next process begins with it."""
    evaluated = 0
    if last or (config.evaluation.every and step % config.evaluation.every == 0):
        score, evaluated = evaluate(config.evaluation, run, roles, step)
        run.checkpoints.record_metric(step, score, config.evaluation.higher_is_better)
    run.end_step(step)
    return evaluated


def read(config: GRPOConfig, run: Run, roles: Roles, groups: Sequence[Group]) -> Batch:
    """The groups as a batch with the log-probabilities that learning compares: those before it, and the reference's."""
    temperature = config.rollout.temperature
    roles.generators.sleep()
    with run.timed("logprobs"):
        batch = Batch.from_groups(groups)
        recompute = config.algorithm.old_logprobs == "recompute"
        old = roles.policy.logprobs(batch, temperature=temperature) if recompute else batch["rollout_logprobs"]
        batch = batch.with_columns(old_logprobs=old)
    if roles.reference is not None:
        with run.timed("reference"):
            batch = batch.with_columns(ref_logprobs=roles.reference.logprobs(batch, temperature=temperature))
    return batch


def learn_from_groups(
    config: GRPOConfig,
    run: Run,
    roles: Roles,
    batch: Batch,
    groups: Sequence[Group],
    settings: AlgorithmConfig,
    step: int,
) -> None:
    """One step of learning: the other answers of the group are the baseline."""
    limit = config.rollout.max_response_tokens
    with run.timed("advantage"):
        batch, metrics = with_advantages(batch, groups, settings, max_response_tokens=limit)
        batch, mismatch = with_importance(batch, settings)
        run.log({**metrics, **mismatch})
    with run.timed("update"):
        run.log(
            roles.policy.update(
                batch,
                settings,
                temperature=config.rollout.temperature,
                max_response_tokens=limit,
                seed=step_seed(config.seed, step),
            )
        )


def step_seed(seed: int, step: int) -> int:
    """What a step's minibatches are drawn by."""
    return seed * 1_000_003 + step


def evaluate(config: EvaluationConfig, run: Run, roles: Roles, step: int) -> tuple[float, int]:
    """Answer the held-out set; the value of the metric that chooses the best checkpoint, and the tokens that were sampled."""
    with run.timed("evaluate"):
        evaluation = roles.evaluator.evaluate(run.watch_calls(step, "evaluation"))
        run.log(evaluation.metrics)
        run.log_answers(step, roles.evaluator.name, evaluation.rows(), limit=config.keep_answers)
    tokens = sum(branch.num_sampled for group in evaluation.groups for branch in group.branches)
    return evaluation.metrics[f"eval/{roles.evaluator.name}/{config.best}"], tokens


def tell_of_cut_answers(run: Run, metrics: Mapping[str, float], config: GRPOConfig, ends: str) -> None:
    """Say, at the first step, when hardly an answer ends by itself."""
    cut = metrics["rollout/truncated_fraction"]
    if cut > MOSTLY_CUT:
        limit = config.rollout.max_response_tokens
        run.event("answers_cut", fraction=cut, max_response_tokens=limit, end_tokens=ends)
        log.warning(
            "%.0f %% of the first step's answers were cut at rollout.max_response_tokens (%d) and %.0f %% ended with an end token (%s): raise the "
            "limit, or see that the model writes one of these at the end of a turn",
            *(100 * cut, limit, 100 * (1 - cut), ends),
        )


def end_tokens(tokenizer: PreTrainedTokenizerBase, model_path: str) -> str:
    """The tokens at which engines end an answer: the tokenizer's, and those of the model's generation_config.json."""
    own = (read_json(Path(model_path) / "generation_config.json") or {}).get("eos_token_id")
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return ", ".join(f"{tokenizer.decode([each])} {each}" for each in sorted(ids)) or "none"


def save(run: Run, roles: Roles, step: int, rollouts: Rollouts, kl: KLCoefficient) -> None:
    """Write a checkpoint: weights in Hugging Face format, and all that `resume` needs."""
    identity = {"model": roles.policy.facts["identity"]}
    with (
        run.timed("checkpoint"),
        run.checkpoints.writing(step, metadata=identity, needs=roles.checkpoint_bytes) as path,
    ):
        roles.save(path)
        state = {"step": step, "kl_coef": kl.value, "consistency": roles.logprob_check.state(), "so_far": run.so_far()}
        save_state(path, {**state, **rollouts.state()})


@contextlib.contextmanager
def saved_if_stopped(run: Run, roles: Roles, step: int, rollouts: Rollouts, kl: KLCoefficient) -> Iterator[None]:
    """Where judges or environments stop the run, what was trained up to `step` is saved: mended, it goes on from there."""
    try:
        yield
    except (RewardError, PlayError):
        if step > 0 and run.checkpoints.latest() != step:
            roles.generators.sleep()  # a policy that shares their devices needs the room
            save(run, roles, step, rollouts, kl)
        raise


def resume(run: Run, roles: Roles, kl: KLCoefficient, *, num_samples: int) -> tuple[int, int, bool]:
    """(step, data position) to go on from: those of the newest whole checkpoint, or the beginning; and whether that step
    still owes its end."""
    step = run.checkpoints.resumable(roles.policy.damage, model=roles.policy.facts["identity"])
    if step is None:
        return 0, 0, False
    state = run.checkpoints.load_state(step, position=int)
    roles.load(run.checkpoints.path(step))
    kl.value = state.get("kl_coef", kl.value)
    return step, position_in(state, num_samples), run.resume_from(step, state.get("so_far", {}))


if __name__ == "__main__":
    run_program(train, GRPOConfig, "jobs/train_grpo.py", rehearse=rehearse)
