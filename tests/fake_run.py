"""A run directory as a training of some hours leaves it, written in a second by the real `Run` on a borrowed clock."""

from __future__ import annotations

import math
import random
from pathlib import Path

from troupe.config.grpo import GRPOConfig
from troupe.config.run import RunConfig
from troupe.records import Branch, Group, Sample, Score
from troupe.report.observers import open_run
from troupe.runs.run import Run
from troupe.runs.run_records import answer_row
from troupe.runs.step_timer import PhaseClock

PHASES = {"rollout": 2.6, "reward": 0.08, "advantage": 0.02, "update": 2.1, "publish": 0.35}


class BorrowedClock:
    """A clock that goes on only when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


def fake_config(directory: Path, *, name: str = "quickstart", steps: int = 120, seed: int = 0) -> GRPOConfig:
    return GRPOConfig(run=RunConfig(name=name, directory=str(directory)), steps=steps, seed=seed)


def fake_run(directory: Path, *, name: str = "quickstart", steps: int = 120, seed: int = 0) -> Path:
    """Write the run and return its directory."""
    config = fake_config(directory, name=name, steps=steps, seed=seed)
    rng, clock = random.Random(f"fake/{seed}"), BorrowedClock()
    with open_run(config) as run:
        run._clock = PhaseClock(clock)
        run.write_placement(
            [
                {"role": "policy", "ranks": 1, "devices": "bundle 0 (1 CPU)", "precision": "fp32"},
                {"role": "generators", "ranks": 2, "devices": "bundles 1-2 (1 CPU each)", "precision": "fp32"},
            ]
        )
        _evaluate(run, 0, rng, _skill(0, steps, seed))
        clock.pass_by(41.0)
        run.end_step(0)
        for step in run.steps(1, steps):
            _fake_step(run, step, rng, clock, _skill(step, steps, seed))
            if step % 10 == 0 or run.is_last(step):
                with run.timed("evaluate"):
                    _evaluate(run, step, rng, _skill(step, steps, seed))
                    clock.pass_by(1.4)
            if step == steps // 2:
                run.event("generator_restarted", engine=1, reason="no answer for 30 s", seconds=12.5)
            run.end_step(step)
    return run.directory


def _skill(step: int, steps: int, seed: int) -> float:
    return 0.18 + (0.6 - 0.05 * seed) * (1 - math.exp(-3 * step / steps))


def _fake_step(run: Run, step: int, rng: random.Random, clock: BorrowedClock, skill: float) -> None:
    for phase, seconds in PHASES.items():
        with run.timed(phase):
            clock.pass_by(seconds * rng.uniform(0.85, 1.25))
    clock.pass_by(0.1)
    accuracy = min(max(rng.gauss(skill, 0.035), 0), 1)
    run.log(
        {
            "reward/mean": accuracy,
            "reward/math_answer": accuracy,
            "reward/std": 0.42 * (1 - skill) * rng.uniform(0.8, 1.1),
            "policy/kl": 0.02 * step / 40 * rng.uniform(0.7, 1.2),
            "policy/entropy": 0.9 - 0.5 * skill + rng.gauss(0, 0.02),
            "policy/clip_fraction": abs(rng.gauss(0.012, 0.006)),
            "policy/grad_norm": math.nan if step == 33 else abs(rng.gauss(0.5, 0.18)),
            "policy/learning_rate": 2e-4 * (1 - step / 200),
            "rollout/response_tokens": 24 - 4 * skill + rng.gauss(0, 0.5),
            "rollout/truncated_fraction": abs(rng.gauss(0.1 * (1 - skill), 0.01)),
            "rollout/lag": 0,
            "rollout/tokens": 11_000 + rng.randrange(800),
            "update/tokens": 21_000 + rng.randrange(800),
            "consistency/logprob_gap": 3e-6 * rng.uniform(0.5, 3),
            "consistency/max_gap": 1e-3,
            "consistency/noise": 2e-4,
            "tokens_per_second": 2_000 + rng.gauss(0, 60),
        }
    )
    groups = [fake_group(rng, index=step * 8 + offset, skill=skill, branches=8) for offset in range(4)]
    run.log_rollouts(step, groups, limit=2)


def _evaluate(run: Run, step: int, rng: random.Random, skill: float) -> None:
    groups = [fake_group(rng, index=100_000 + index, skill=skill, branches=1) for index in range(40)]
    accuracy = sum(group.scores[0].parts["accuracy"] for group in groups) / len(groups)
    run.log({"eval/heldout/accuracy": accuracy, "eval/heldout/formatted": min(0.35 + 0.65 * skill * 1.2, 1)})
    run.log_answers(step, "heldout", [answer_row(group) for group in groups])


def fake_group(rng: random.Random, *, index: int, skill: float, branches: int) -> Group:
    facts = random.Random(index)
    name, thing = facts.choice(["Tom", "Ada", "Lin", "Noor"]), facts.choice(["pens", "marbles", "books", "stamps"])
    have, more = facts.randrange(2, 60), facts.randrange(2, 40)
    prompt = f"{name} has {have} {thing} and gets {more} more. How many {thing} does {name} have now?\n"
    sample = Sample(sample_id=f"word_problems/{index}", prompt=prompt, gold=str(have + more))
    texts, scores = [], []
    for _ in range(branches):
        right, formatted = rng.random() < skill, rng.random() < 0.35 + 0.65 * skill
        said = have + more if right else have + more + rng.choice([-10, -1, 1, 3, 10])
        texts.append(f"{have}+{more}={said}" + (f"\n#### {said}" if formatted else ""))
        value = float(right and formatted)
        scores.append(Score(value=value, parts={"accuracy": value}))
    answers = [
        Branch(token_ids=range(len(text)), text=text, finish_reason="stop" if "####" in text else "length")
        for text in texts
    ]
    return Group(sample=sample, prompt_ids=range(len(prompt)), branches=answers).with_scores(scores)
