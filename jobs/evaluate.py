"""Evaluate one or several models on the held-out side of a data set: metrics, a reward model, comparisons.

    python jobs/evaluate.py model=runs/quickstart [data.type=gsm8k ...] [recipe.yaml ...]
    python jobs/evaluate.py 'models={sft: runs/sft, ppo: runs/ppo}' rouge=true reward_model.path=runs/reward against=sft

First every model answers, then the answers are scored; they are kept in between, so a second call goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.config.evaluation import REFERENCE, REWARD_MODEL, EvaluateConfig
from troupe.config.loader import dump_config
from troupe.config.program import run_program
from troupe.errors import RewardError
from troupe.evaluation.comparison import Comparison, compare
from troupe.evaluation.evaluation_tables import (
    AnswerRow,
    Estimates,
    as_markdown,
    build_answer_row,
    measure,
    num_words,
    print_tables,
    result_tables,
    write_answers,
    write_metrics,
)
from troupe.evaluation.generation import evaluation_cluster, generate, reward_scores
from troupe.evaluation.plan import Examination, answer_settings, prepare, with_opponent
from troupe.evaluation.stored_answers import Answers, AnswerStore
from troupe.files import read_json, write_atomically
from troupe.records import Group, Score
from troupe.report.trackers import log_evaluation
from troupe.secrets import public_values
from troupe.training.sampled_answers import with_outcome

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What was said of every answer: name -> sample_id -> marks."""

    rewards: Mapping[str, Mapping[str, float]]
    """The reward model's; empty without one."""
    functions: Mapping[str, Mapping[str, Score]]
    """The reward functions'."""

    def judged(self, judge: str, name: str) -> dict[str, float]:
        """sample_id -> the judge's number, where there is one."""
        if judge == REWARD_MODEL:
            return dict(self.rewards[name])
        scores = self.functions[name]
        return {sample_id: score.parts[judge] for sample_id, score in scores.items() if judge in score.parts}


def evaluate(config: EvaluateConfig) -> None:
    exam = prepare(config)
    output = output_directory(config)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "recipe.yaml", dump_config(config))

    answers, rewards = perform(config, exam, AnswerStore(output / "generated"))
    marks = Marks(rewards=rewards, functions=function_scores(config, exam, answers))

    rows = {name: answer_rows(exam, name, answers[name], marks) for name in exam.contestants}
    models = {name: measure(of_name, seed=config.seed) for name, of_name in rows.items()}
    comparisons = compare_all(config, exam, answers, marks)
    report(config, exam, output, rows, models, comparisons)


def output_directory(config: EvaluateConfig) -> Path:
    if config.output is not None:
        return Path(config.output)
    is_run = config.model is not None and (Path(config.model) / "checkpoints").is_dir()
    return Path(str(config.model)) / "evaluation" if is_run else Path("evaluation")


# -- answers and scores -----------------------------------------------------------------------------------------


def perform(
    config: EvaluateConfig, exam: Examination, store: AnswerStore
) -> tuple[dict[str, Answers], dict[str, dict[str, float]]]:
    """Everybody's answers, and the reward model's scores of them; what an earlier call answered is read."""
    ids = [sample.sample_id for sample in exam.samples]
    settings = {
        name: answer_settings(config, path, exam.asked[name], exam.tokenizers[name])
        for name, path in exam.paths.items()
    }
    stored = {name: store.read(name, ids, settings[name]) for name in exam.paths}
    answers: dict[str, Answers] = dict(exam.given) | {name: kept for name, kept in stored.items() if kept is not None}
    unanswered = [name for name in exam.paths if stored[name] is None]
    if not unanswered and exam.reward_model is None:
        return answers, {}
    with evaluation_cluster(config) as cluster:
        for name in unanswered:
            log.info("%s answers %d prompts", name, len(ids))
            answers[name] = generate(cluster, config, exam.paths[name], exam.asked[name], exam.tokenizers[name])
            store.write(name, answers[name], settings[name])
        if exam.reward_model is None:
            return answers, {}
        log.info("%s scores the answers", exam.reward_model.path)
        return answers, reward_scores(cluster, config, exam.reward_model, exam.samples, answers)


def function_scores(
    config: EvaluateConfig, exam: Examination, answers: Mapping[str, Answers]
) -> dict[str, dict[str, Score]]:
    """Name -> sample_id -> what the reward functions say, and how games ended; of the references too where they are
    compared with."""
    if exam.rewards is None:
        return {
            name: {
                sample_id: branch.outcome for sample_id, branch in answers[name].items() if branch.outcome is not None
            }
            for name in exam.contestants
        }
    names = exam.contestants
    if config.opponent == REFERENCE and config.judge_name != REWARD_MODEL:
        names = [*names, REFERENCE]
    other = answers[config.opponent] if config.opponent is not None else {}
    groups = [
        Group(sample=with_opponent(sample, other), prompt_ids=(), branches=[answers[name][sample.sample_id]])
        for name in names
        for sample in exam.samples
    ]
    scored = iter(asyncio.run(exam.rewards.score_all(groups, config.max_concurrency)))
    return {
        name: {
            sample.sample_id: with_outcome(answers[name][sample.sample_id], next(scored)[0]) for sample in exam.samples
        }
        for name in names
    }


# -- what follows from them -------------------------------------------------------------------------------------


def answer_rows(exam: Examination, name: str, answers: Answers, marks: Marks) -> list[AnswerRow]:
    """One row per sample, in the order of the data."""
    rewards, references = marks.rewards.get(name, {}), marks.rewards.get(REFERENCE, {})
    functions = marks.functions.get(name, {})
    return [
        build_answer_row(
            sample,
            answers[sample.sample_id],
            functions.get(sample.sample_id),
            score_prediction=rewards.get(sample.sample_id),
            score_reference=references.get(sample.sample_id),
        )
        for sample in exam.samples
    ]


def compare_all(
    config: EvaluateConfig, exam: Examination, answers: Mapping[str, Answers], marks: Marks
) -> dict[str, Comparison]:
    """Every model against the opponent, on the samples where the judge said something of both."""
    if config.opponent is None:
        return {}
    reference = marks.judged(config.judge_name, config.opponent)
    comparisons = {}
    for name in exam.contestants:
        if name == config.opponent:
            continue
        own = marks.judged(config.judge_name, name)
        ids = [sample.sample_id for sample in exam.samples if sample.sample_id in own and sample.sample_id in reference]
        if not ids:
            raise RewardError(f"the judge {config.judge_name} said nothing of {name} and {config.opponent} together")
        comparisons[f"{name} against {config.opponent}"] = compare(
            [own[sample_id] for sample_id in ids],
            [reference[sample_id] for sample_id in ids],
            words=[num_words(answers[name][sample_id]) for sample_id in ids],
            reference_words=[num_words(answers[config.opponent][sample_id]) for sample_id in ids],
            tie_margin=config.margin,
            seed=config.seed,
        )
    return comparisons


def report(
    config: EvaluateConfig,
    exam: Examination,
    output: Path,
    rows: Mapping[str, Sequence[AnswerRow]],
    models: Mapping[str, Estimates],
    comparisons: Mapping[str, Comparison],
) -> None:
    """Write the files and print the tables."""
    for name, of_name in rows.items():
        write_answers(output / "answers", name, of_name)
    counts = {"samples": len(exam.samples), "prompts_too_long": exam.too_long}
    if exam.rewards is not None:
        counts |= {f"missing_{label}": count for label, count in exam.rewards.missing.items()}
    write_metrics(output / "metrics.json", models, comparisons, counts=counts, settings=settings_in_words(config))
    tables = result_tables(models, comparisons)
    write_atomically(output / "results.md", as_markdown(tables, lead=f"# Evaluation\n\n{lead(config, exam)}"))
    rich.print(lead(config, exam))
    print_tables(tables)
    rich.print(f"written to {output}")
    log_evaluation(
        config.trackers,
        directory=output,
        values=public_values(config),
        measured=read_json(output / "metrics.json"),
    )


def settings_in_words(config: EvaluateConfig) -> dict[str, str]:
    """What a reader of metrics.json has to know; the whole recipe lies beside it."""
    settings = {"recipe": "recipe.yaml", "intervals": "95 %, percentile bootstrap"}
    if config.opponent is not None:
        settings |= {"against": config.opponent, "judge": config.judge_name, "tie_margin": f"{config.margin:g}"}
    return settings


def lead(config: EvaluateConfig, exam: Examination) -> str:
    """What was done, under the heading of the tables."""
    words = f"{len(exam.samples)} held-out samples of {config.data.type}, answered {config.in_words}; means with 95 % bootstrap intervals."
    if exam.too_long:
        words += f" {exam.too_long} prompts were longer than {config.max_prompt_tokens} tokens and left out."
    if config.opponent is not None:
        words += f" Judge of the comparisons: {config.judge_name}, ties within {config.margin:g}."
    return words


if __name__ == "__main__":
    run_program(evaluate, EvaluateConfig, "jobs/evaluate.py", rehearse=lambda config: prepare(config).lines())
