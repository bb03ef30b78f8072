"""GRPO: sample groups of answers, score them, and make the better ones of each group more likely.

    python jobs/train_grpo.py [config.yaml ...] [section.field=value ...]

Without a config it is the quickstart: word problems, a model made here, two CPU cores. `--help` lists the sections,
`--dry-run` checks a config without starting anything. RLOO and PPO are this loop with other settings; PPO adds a
critic.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe import agents, algorithms, data, training
from troupe.chat import ChatForm
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.program import run_program
from troupe.config.rollout import EvaluationConfig
from troupe.environments import build_environment
from troupe.errors import DataError, PlayError, RewardError
from troupe.files import read_json
from troupe.records import Group
from troupe.runs.checkpoint import save_state
from troupe.runs.model_check import locate_reward_model
from troupe.runs.model_paths import locate
from troupe.runs.run import Run
from troupe.training.preparation import Prepared, prepare

log = logging.getLogger(__name__)

MOSTLY_CUT = 0.9
"""Share of answers cut at their limit above which something is wrong with their ends."""


def train(config: GRPOConfig) -> training.TrainingResult:
    """Train a policy with GRPO, RLOO or PPO, as `config.algorithm` states; what the run left."""
    config, prepared = prepare_models(config)
    with training.open_context(config, prepared, init_timeout_s=config.policy.init_timeout_s) as context:
        for attempt in training.attempts(context):
            with training.start_roles(config, context) as roles, attempt:
                for recoverable in training.recoveries(context, roles):
                    with recoverable:
                        train_loop(config, context, roles)
    return training.read_result(config.run.path)


def prepare_models(config: GRPOConfig) -> tuple[GRPOConfig, Prepared]:
    """Find the config's models, and try its data and rewards: all that can be known before the first process."""
    if config.environment is not None:
        build_environment(config.environment).require_metric(config.evaluation.best_in(config.heldout_names)[1])
    if config.agent is not None:
        agents.build_program(config.agent)
    if config.reward_model is not None:
        config = config.model_copy(update={"reward_model": locate_reward_model(config.reward_model)})
    if isinstance(config, PPOConfig) and config.critic.start not in ("policy", "reward_model"):
        start = {"start": locate(config.critic.start)}
        config = config.model_copy(update={"critic": config.critic.model_copy(update=start)})
    if config.perplexity_reward is not None and config.perplexity_reward.path is not None:
        found = {"path": locate(config.perplexity_reward.path)}
        config = config.model_copy(update={"perplexity_reward": config.perplexity_reward.model_copy(update=found)})
    return config, prepare(config, rewards=config.rewards, metrics=config.evaluation.metrics)


def rehearse(config: GRPOConfig) -> list[str]:
    """Describe what a dry run found."""
    return prepare_models(config)[1].lines()


def train_loop(config: GRPOConfig, context: training.RunContext, roles: training.Roles) -> None:
    """Train every step from the last checkpoint, or from the beginning, to the end."""
    run, kl = context.run, algorithms.KLCoefficient(config.algorithm.kl)
    start = resume(config, run, roles, kl)
    first, kept = start.step, training.KeptRollouts(run.directory)
    rollouts = training.Rollouts(
        data.stream_of(context.data, config.seed, start.place, climbs=True),
        roles.form,
        roles.generators,
        roles.rewarder,
        config.rollout,
        seed=config.seed,
        last_step=config.steps,
        requires_group=config.algorithm.advantage not in ("reinforce", "gae"),
        calls=run,
        answers=roles.episodes,
        recover=roles.recover,
    )
    with run.timed("publish"):
        run.log(roles.publish(first))
    if start.is_new:
        evaluate(config.evaluation, run, roles, step=0)
        run.end_step(0)
    elif start.owed:
        finish(config, run, roles, first, last=first >= config.steps)
    # From one step's prompts handed to the engines to the next one's, with whatever was answered in between.
    since, evaluated = time.perf_counter(), 0
    for step in run.steps(first + 1, config.steps):
        with run.timed("rollout"), save_on_stop(run, roles, step - 1, rollouts, kl):
            if step in start.sampled:  # before a process died
                rollout = start.sampled[step].rollout
            else:
                rollout = rollouts.next_batch(step)
                kept.keep(step, training.Kept(rollout=rollout, place=rollouts.state()))
            run.log(rollout.metrics)
            run.log_rollouts(step, rollout.groups, config.run.samples_per_step, roles.form.tokenizer.decode)
        if step == first + 1:
            warn_of_cut_answers(run, rollout.metrics, config, end_tokens(roles.form, context.model_path))
        learn(config, run, roles, rollout.groups, kl, step)
        last = run.is_last(step)
        if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            kept.forget(up_to=run.checkpoints.latest() or 0)  # later ones serve until this checkpoint is whole
            save(run, roles, step, rollouts, kl)  # before the policy leaves a shared device to the generators
        with run.timed("publish"):
            run.log(roles.publish(step))
            rollouts.prefetch(step)
        now = time.perf_counter()
        run.log({"tokens_per_second": (rollout.metrics["rollout/tokens"] + evaluated) / (now - since)})
        since = now
        evaluated = finish(config, run, roles, step, last=last)
    kept.forget(up_to=run.checkpoints.latest() or 0)


def finish(config: GRPOConfig, run: Run, roles: training.Roles, step: int, *, last: bool) -> int:
    """Evaluate where it is due and write the step's line; the tokens that the evaluation answered.

    A step whose process died between its checkpoint and here owes this, and the next process begins with it.
    """
    evaluated = 0
    if last or (config.evaluation.every and step % config.evaluation.every == 0):
        score, evaluated = evaluate(config.evaluation, run, roles, step)
        run.checkpoints.record_metric(step, score, config.evaluation.higher_is_better)
    run.end_step(step)
    return evaluated


def learn(
    config: GRPOConfig,
    run: Run,
    roles: training.Roles,
    groups: Sequence[Group],
    kl: algorithms.KLCoefficient,
    step: int,
) -> None:
    """Make the step's optimizer steps on its groups, of which there may be none."""
    if not groups:
        run.event("no_signal", reason="every group's answers have equal rewards; the weights stay as they are")
        return
    batch = compute_logprobs(config, run, roles, groups)
    update(config, run, roles, batch, groups, kl.within(config.algorithm), step)
    run.log(kl.follow(batch))


def compute_logprobs(config: GRPOConfig, run: Run, roles: training.Roles, groups: Sequence[Group]) -> algorithms.Batch:
    """Return the groups as a batch with the log-probabilities before learning, and the reference's."""
    temperature = config.rollout.temperature
    roles.generators.sleep()
    with run.timed("logprobs"):
        batch = algorithms.Batch.from_groups(groups)
        recompute = config.algorithm.old_logprobs == "recompute"
        old = roles.policy.logprobs(batch, temperature=temperature) if recompute else batch["rollout_logprobs"]
        batch = batch.with_columns(old_logprobs=old)
    if roles.reference is not None:
        with run.timed("reference"):
            batch = batch.with_columns(ref_logprobs=roles.reference.logprobs(batch, temperature=temperature))
    return batch


def update(
    config: GRPOConfig,
    run: Run,
    roles: training.Roles,
    batch: algorithms.Batch,
    groups: Sequence[Group],
    settings: AlgorithmConfig,
    step: int,
) -> None:
    """Learn from one batch: advantages, then the policy, and the critic of PPO, on the same minibatches."""
    limit = config.rollout.max_response_tokens
    if roles.critic is not None:
        with run.timed("values"):
            batch = batch.with_columns(old_values=roles.critic.values(batch))
    with run.timed("advantage"):
        if isinstance(config, PPOConfig):  # the critic's values are the baseline of every token
            batch, metrics = algorithms.with_gae(batch, groups, settings, config.gae, max_response_tokens=limit)
        else:  # the other answers of the group are
            batch, metrics = algorithms.with_advantages(batch, groups, settings, max_response_tokens=limit)
        batch, mismatch = algorithms.with_importance(batch, settings)
        run.log({**metrics, **mismatch})
    minibatches = algorithms.split_minibatches(
        batch, settings, max_response_tokens=limit, seed=config.seed * 1_000_003 + step
    )
    with run.timed("update"):
        run.log(roles.policy.update(minibatches, algorithms.PolicyObjective(settings, config.rollout.temperature)))
    if isinstance(config, PPOConfig) and roles.critic is not None:
        with run.timed("critic_update"):
            run.log(roles.critic.update(minibatches, algorithms.ValueObjective(config.critic.value_clip)))


def evaluate(config: EvaluationConfig, run: Run, roles: training.Roles, step: int) -> tuple[float, int]:
    """Answer the held-out set; return the metric that chooses the best checkpoint, and the tokens sampled."""
    with run.timed("evaluate"):
        evaluation = roles.evaluator.evaluate(run.watch_calls(step, "evaluation"))
        run.log(evaluation.metrics)
        for name, rows in evaluation.rows(roles.form.tokenizer.decode).items():
            run.log_answers(step, name, rows, limit=config.keep_answers)
    best = f"eval/{config.best}"  # of a set that it names, else of the run's own
    value = evaluation.metrics.get(best, evaluation.metrics.get(f"eval/{roles.evaluator.name}/{config.best}"))
    if value is None:
        raise DataError(
            f"evaluation.best_metric {config.best!r} is not measured; known: {', '.join(evaluation.metrics)}"
        )
    return value, evaluation.num_sampled


def warn_of_cut_answers(run: Run, metrics: Mapping[str, float], config: GRPOConfig, ends: str) -> None:
    """Warn, at the first step, when hardly an answer ends by itself."""
    cut = metrics["rollout/truncated_fraction"]
    if cut > MOSTLY_CUT:
        limit = config.rollout.max_response_tokens
        run.event("answers_cut", fraction=cut, max_response_tokens=limit, end_tokens=ends)
        log.warning(
            "%.0f %% of the first step's answers were cut at rollout.max_response_tokens (%d) and %.0f %% ended with "
            "an end token (%s): raise the limit, or see that the model writes one of these at the end of a turn",
            *(100 * cut, limit, 100 * (1 - cut), ends),
        )


def end_tokens(form: ChatForm, model_path: str) -> str:
    """Name the tokens that end an answer: the conversation form's, and those of the model's generation_config.json."""
    own = (read_json(Path(model_path) / "generation_config.json") or {}).get("eos_token_id")
    ids = {*form.stop_ids, *(own if isinstance(own, list) else [own])} - {None}
    return ", ".join(f"{form.tokenizer.decode([each])} {each}" for each in sorted(ids)) or "none"


def save(run: Run, roles: training.Roles, step: int, rollouts: training.Rollouts, kl: algorithms.KLCoefficient) -> None:
    """Write a checkpoint: weights in Hugging Face format, and all that `resume` needs."""

    def fill(path: Path) -> None:
        roles.save(path)
        state = {"step": step, "kl_coef": kl.value, "consistency": roles.logprob_check.state(), "so_far": run.so_far()}
        save_state(path, {**state, **rollouts.state()})

    identity = {"model": roles.policy.facts["identity"]}
    with run.timed("checkpoint"):
        run.checkpoints.write(step, fill, metadata=identity, needs=roles.checkpoint_bytes)


@contextlib.contextmanager
def save_on_stop(
    run: Run, roles: training.Roles, step: int, rollouts: training.Rollouts, kl: algorithms.KLCoefficient
) -> Iterator[None]:
    """Save what was trained up to `step` where judges or environments stop the run: mended, it goes on from there."""
    try:
        yield
    except (RewardError, PlayError):
        if step > 0 and run.checkpoints.latest() != step:
            roles.generators.sleep()  # a policy that shares their devices needs the room
            save(run, roles, step, rollouts, kl)
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The place where a run begins, or goes on."""

    step: int
    """The weights are those after this step."""
    place: Mapping[str, Any] | None = None
    """In the prompts."""
    owed: bool = False
    """Whether the step still owes its evaluation and its line."""
    is_new: bool = False
    sampled: Mapping[int, training.Kept] = field(default_factory=dict)
    """Further steps whose groups were sampled before a process died."""


def resume(config: GRPOConfig, run: Run, roles: training.Roles, kl: algorithms.KLCoefficient) -> Start:
    """Load the newest whole checkpoint, if any, and learn again from the groups of the steps that ended after it."""
    ended, kept = run.last_ended, training.KeptRollouts(run.directory)
    saved = run.checkpoints.resumable(roles.policy.damage, model=roles.policy.facts["identity"])
    state: Mapping[str, Any] = {}
    if saved is not None:
        state = run.checkpoints.load_state(saved, position=int)
        roles.load(run.checkpoints.path(saved))
        kl.value = state.get("kl_coef", kl.value)
    first, sampled = saved or 0, kept.after(saved or 0)
    last = max((step for step in sampled if ended is not None and step <= ended), default=first)
    if last > first:
        with run.replaying(first + 1, last):
            for step in range(first + 1, last + 1):
                learn(config, run, roles, sampled[step].rollout.groups, kl, step)
    place = sampled[max(sampled)].place if sampled else state or None
    if saved is None and last == 0 and ended is None:
        return Start(step=0, is_new=True, place=place, sampled=sampled)
    owed = run.resume_from(last, state.get("so_far", {}), sampled=max(sampled, default=-1))
    return Start(step=last, place=place, owed=owed, sampled={s: k for s, k in sampled.items() if s > last})


if __name__ == "__main__":
    run_program(train, GRPOConfig, "jobs/train_grpo.py", rehearse=rehearse)
