"""GRPO: sample groups of answers, score them, and make the better ones of each group more likely.

    python jobs/train_grpo.py [recipe.yaml ...] [section.field=value ...]

Without a recipe it is the quickstart: word problems, a model made here, two CPU cores. `--help` lists every
field, `--dry-run` checks a recipe without starting anything.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from actors.cast import Cast, cast
from actors.objective import with_advantages, with_importance
from actors.placement import Stage, seats
from actors.rollouts import Rollouts
from actors.warm_start import starting_model
from algorithms.packing import Batch
from core.checkpoint import save_state
from core.program import run_program
from core.recipes import EvaluationConfig, GRPOConfig
from core.records import Group, Sample
from core.run import Run
from data import PromptStream, load_data
from jobs.closing import print_opening, print_summary, warm_start_progress
from rewards import build_rewards


def train(config: GRPOConfig) -> None:
    with Run.open(config) as run:
        for functions in (config.rewards, config.evaluation.metrics):
            build_rewards(functions)  # a wrong name or argument is found before anything expensive starts
        data = load_data(config.data)
        stage = Stage(config.placement)
        try:
            precision = stage.machine.precision(config.policy.precision)
            table = seats(config, device=stage.machine.device)
            with warm_start_progress() as progress:
                model_path = starting_model(
                    config.model,
                    data,
                    stage,
                    precision=precision,
                    seed=config.seed,
                    progress=progress,
                )
            stage.reserve(table, config.policy.init_timeout_s)
            print_opening(config, stage, precision)
            run.write_placement(stage.rows())
            with cast(config, stage, data, model_path, precision=precision) as troupe:
                run_loop(config, run, troupe, data.train)
        finally:
            stage.close()
    print_summary(run.directory)


def run_loop(config: GRPOConfig, run: Run, troupe: Cast, prompts: Sequence[Sample]) -> None:
    """The training loop: every step from the last checkpoint, or from the beginning, to the end."""
    first, position = resume(run, troupe)
    rollouts = Rollouts(
        PromptStream(prompts, config.seed, position=position),
        troupe.tokenizer,
        troupe.generators,
        troupe.rewarder,
        config.rollout,
        seed=config.seed,
        last_step=config.steps,
        needs_company=config.algorithm.advantage != "reinforce",
    )
    with run.timed("publish"):
        run.log({"consistency/logprob_gap": troupe.publish(first), "consistency/max_gap": troupe.gate.bound})
    if first == 0:
        evaluate(config.evaluation, run, troupe, step=0)
        run.end_step(0)
    for step in run.steps(first + 1, config.steps):
        started = time.perf_counter()
        with run.timed("rollout"):
            rollout = rollouts.collect(step)
            run.log(rollout.metrics)
            run.log_rollouts(step, rollout.groups, config.run.samples_per_step)
        if rollout.groups:
            learn(config, run, troupe, rollout.groups, step)
        else:
            run.event("no_signal", reason="every group's answers have equal rewards; the weights stay as they are")
        last = run.is_last(step)
        if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            save(run, troupe, step, rollouts)  # before the policy leaves a shared device to the generators
        with run.timed("publish"):
            run.log({"consistency/logprob_gap": troupe.publish(step)})
            rollouts.ahead(step)
        if last or (config.evaluation.every and step % config.evaluation.every == 0):
            score = evaluate(config.evaluation, run, troupe, step)
            run.checkpoints.record_metric(step, score, config.evaluation.higher_is_better)
        run.log({"tokens_per_second": rollout.metrics["rollout/tokens"] / (time.perf_counter() - started)})
        run.end_step(step)


def learn(config: GRPOConfig, run: Run, troupe: Cast, groups: Sequence[Group], step: int) -> None:
    """One step of learning from scored groups."""
    settings, temperature = config.algorithm, config.rollout.temperature
    limit = config.rollout.max_response_tokens
    troupe.generators.sleep()
    with run.timed("logprobs"):
        batch = Batch.from_groups(groups)
        recompute = settings.old_logprobs == "recompute"
        old = troupe.policy.logprobs(batch, temperature=temperature) if recompute else batch["rollout_logprobs"]
        batch = batch.with_columns(old_logprobs=old)
    if troupe.reference is not None:
        with run.timed("reference"):
            batch = batch.with_columns(ref_logprobs=troupe.reference.logprobs(batch, temperature=temperature))
    with run.timed("advantage"):
        batch, metrics = with_advantages(batch, groups, settings, max_response_tokens=limit)
        batch, mismatch = with_importance(batch, settings)
        run.log({**metrics, **mismatch})
    with run.timed("update"):
        run.log(
            troupe.policy.update(
                batch, settings, temperature=temperature, max_response_tokens=limit, seed=config.seed * 1_000_003 + step
            )
        )


def evaluate(config: EvaluationConfig, run: Run, troupe: Cast, step: int) -> float:
    """Answer the held-out set; the value of the metric that chooses the best checkpoint."""
    with run.timed("evaluate"):
        evaluation = troupe.evaluator.evaluate()
        run.log(evaluation.metrics)
        run.log_answers(step, troupe.evaluator.name, evaluation.rows())
    return evaluation.metrics[f"eval/{troupe.evaluator.name}/{config.best}"]


def save(run: Run, troupe: Cast, step: int, rollouts: Rollouts) -> None:
    """Write a checkpoint: weights in Hugging Face format, and all that `resume` needs."""
    with (
        run.timed("checkpoint"),
        run.checkpoints.writing(step, metadata={"model": troupe.policy.facts["identity"]}) as path,
    ):
        troupe.policy.save(str(path))
        save_state(path, {"step": step, **rollouts.state()})


def resume(run: Run, troupe: Cast) -> tuple[int, int]:
    """(step, data position) to go on from: those of the newest complete checkpoint, or the beginning."""
    step = run.checkpoints.latest()
    if step is None:
        return 0, 0
    run.checkpoints.verify(step, model=troupe.policy.facts["identity"])
    troupe.policy.load(str(run.checkpoints.path(step)))
    run.resume_from(step)
    return step, run.checkpoints.load_state(step)["position"]


if __name__ == "__main__":
    run_program(train, GRPOConfig, "jobs/train_grpo.py")
