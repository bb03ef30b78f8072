"""Score a file of answers with the rewards of a recipe: no training, no model, no cluster.

    python jobs/score.py file=answers.jsonl rewards='[{fn: math_answer}, {fn: length, args: {limit: 400, unit: chars}}]'

Each line of the file holds a prompt, an answer and usually a gold answer; the output repeats it with `score` and
`parts`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich
from pydantic import Field
from rich.table import Table

from troupe.config.loader import Section
from troupe.config.program import run_program
from troupe.config.rollout import RewardConfig
from troupe.data.lines import Row, read_rows, text_of, write_rows
from troupe.records import Branch, Group, Sample, Score
from troupe.rewards.build import Rewards, build_rewards


class ScoreConfig(Section):
    """Score a JSONL file of answers."""

    examples = (
        "file=answers.jsonl",
        "file=answers.jsonl 'rewards=[{fn: math_answer}, {fn: length, args: {limit: 400, unit: chars}}]'",
    )
    page = "docs/rewards.md"

    file: str
    """JSONL file with one answer per line."""
    output: str | None = None
    """JSONL file that gets the scores; unset: the file's name with `.scored.jsonl`, in its directory."""
    rewards: list[RewardConfig] = Field(default=[RewardConfig(fn="math_answer")], min_length=1)
    """What a good answer is: a weighted sum."""
    prompt_field: str = "prompt"
    """Field with the prompt: a string, or a list of messages; may be absent."""
    answer_field: str = "answer"
    """Field with the answer; may be the empty string."""
    gold_field: str = "gold"
    """Field with the reference answer; may be absent for rewards that need none."""
    id_field: str | None = None
    """Field with the prompt's id: answers that share it are judged together, as a group; unset: each on its own."""
    max_concurrency: int = Field(default=32, ge=1)
    """Groups in flight, for rewards that wait on a network."""

    @property
    def output_path(self) -> Path:
        return Path(self.file).with_suffix(".scored.jsonl") if self.output is None else Path(self.output)


def read(config: ScoreConfig) -> tuple[Rewards, list[tuple[str, Row]], list[list[int]], list[Group]]:
    """Return (rewards, rows with their places, row numbers of each group, groups), before anything is judged."""
    rewards = build_rewards(config.rewards)
    located = [(where, row) for _, where, row in read_rows(Path(config.file))]
    members = group_members([row for _, row in located], config.id_field)
    groups = [build_group([located[index] for index in indices], config) for indices in members]
    rewards.check(group.sample for group in groups)
    return rewards, located, members, groups


def rehearse(config: ScoreConfig) -> list[str]:
    """Return what a dry run shows."""
    rewards, located, _, groups = read(config)
    return [f"{len(located)} answers in {len(groups)} groups, judged by {', '.join(rewards.labels)}"]


def score(config: ScoreConfig) -> None:
    rewards, located, members, groups = read(config)
    scored = asyncio.run(rewards.score_all(groups, config.max_concurrency))

    by_row = {
        index: score
        for indices, scores in zip(members, scored, strict=True)
        for index, score in zip(indices, scores, strict=True)
    }
    write_rows(
        config.output_path,
        ({**row, "score": by_row[i].value, "parts": dict(by_row[i].parts)} for i, (_, row) in enumerate(located)),
    )
    rich.print(summary(list(by_row.values()), rewards.labels))
    rich.print(f"{len(located)} answers scored, written to {config.output_path}")


def group_members(rows: Sequence[Row], id_field: str | None) -> list[list[int]]:
    """Return the row numbers of each group: rows of one id together, in the order of their first appearance."""
    members: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        key = index if id_field is None else row.get(id_field, index)
        members.setdefault(str(key), []).append(index)
    return list(members.values())


def build_group(located: Sequence[tuple[str, Row]], config: ScoreConfig) -> Group:
    where, first = located[0]
    sample = Sample(
        sample_id=where if config.id_field is None else text_of(first, config.id_field, where),
        prompt=first.get(config.prompt_field, ""),
        gold=text_of(first, config.gold_field, where) if first.get(config.gold_field) is not None else None,
        fields=first,
    )
    branches = [build_branch(row, where, config) for where, row in located]
    return Group(sample=sample, prompt_ids=(), branches=branches)


def build_branch(row: Row, where: str, config: ScoreConfig) -> Branch:
    answer = row.get(config.answer_field)
    text = "" if answer == "" else text_of(row, config.answer_field, where)
    return Branch(token_ids=row.get("token_ids", ()), text=text, finish_reason=row.get("finish_reason", "stop"))


def summary(scores: Sequence[Score], labels: Sequence[str]) -> Table:
    """Return a row per reward, unweighted, and one for the weighted sum."""
    table = Table("reward", *("count", "mean", "std", "min", "max", "missing"))
    for label in labels:
        table.add_row(
            label,
            *statistics_of([score.parts[label] for score in scores if label in score.parts], num_answers=len(scores)),
        )
    table.add_section()
    table.add_row(
        "score", *statistics_of([score.value for score in scores if score.value is not None], num_answers=len(scores))
    )
    return table


def statistics_of(values: Sequence[float], *, num_answers: int) -> list[str]:
    """Return count, mean, sample standard deviation, min, max, missing."""
    missing = str(num_answers - len(values))
    if not values:
        return ["0", "-", "-", "-", "-", missing]
    std = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
    return [
        str(len(values)),
        f"{statistics.fmean(values):.4f}",
        std,
        f"{min(values):.4f}",
        f"{max(values):.4f}",
        missing,
    ]


if __name__ == "__main__":
    run_program(score, ScoreConfig, "jobs/score.py", rehearse=rehearse)
