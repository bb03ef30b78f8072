import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from troupe.config.program import run_program
from troupe.config.rollout import RewardConfig
from troupe.jobs.score import ScoreConfig, rehearse, score, statistics_of
from troupe.records import Branch, Sample

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = [
    {"prompt": "3+5?", "answer": "#### 8", "gold": "8", "source": "a"},
    {"prompt": "3+5?", "answer": "", "gold": 8, "source": "b"},
    {"prompt": "2+2?", "answer": "#### 5", "gold": "4", "source": "c"},
]


def write(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> str:
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file={tmp_path / 'answers.jsonl'}"


def scored(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def cells(stdout: str, label: str) -> list[str]:
    (line,) = [line for line in stdout.splitlines() if line.startswith(f"│ {label} ")]
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_every_answer_gets_its_score_and_the_table_sums_them_up(tmp_path: Path) -> None:
    rewards = "rewards=[{fn: math_answer}, {fn: length, weight: 0.5, args: {limit: 3, unit: chars}}]"
    command = [sys.executable, "jobs/score.py", write(tmp_path, ANSWERS), rewards]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    rows = scored(tmp_path / "answers.scored.jsonl")
    assert [row["score"] for row in rows] == [1.0, 0.5, 0.0]
    assert rows[1] == {**ANSWERS[1], "score": 0.5, "parts": {"math_answer": 0.0, "length": 1.0}}
    # count, mean, std, min, max, missing; of 1, 1/2, 0 the mean is 1/2 and the sample deviation sqrt((1/4 + 1/4) / 2) =
    # 1/2.
    assert cells(ran.stdout, "score") == ["3", "0.5000", "0.5000", "0.0000", "1.0000", "0"]
    assert cells(ran.stdout, "length")[:2] == ["3", "0.3333"]


def test_answers_that_share_an_id_are_judged_together(tmp_path: Path) -> None:
    rows = [*ANSWERS, {"prompt": "3+5?", "answer": "It is 8.", "source": "a"}]
    rank = RewardConfig(fn="tests.rewards.example_rewards:rank")
    write(tmp_path, rows)
    score(
        ScoreConfig(
            file=str(tmp_path / "answers.jsonl"), id_field="source", rewards=[rank], output=str(tmp_path / "out.jsonl")
        )
    )
    # The group of source a is lines 1 and 4, where line 4 has the longer answer; the others are alone.
    assert [row["score"] for row in scored(tmp_path / "out.jsonl")] == [0.0, 0.0, 0.0, 1.0]


def test_missing_judgements_are_counted_and_not_averaged(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS)
    silent = RewardConfig(fn="tests.rewards.example_rewards:missing_on_silence", name="judge")
    score(ScoreConfig(file=str(tmp_path / "answers.jsonl"), rewards=[silent]))
    assert [row["score"] for row in scored(tmp_path / "answers.scored.jsonl")] == [1.0, None, 1.0]
    assert statistics_of([1.0, 1.0], num_answers=3) == ["2", "1.0000", "0.0000", "1.0000", "1.0000", "1"]
    assert statistics_of([], num_answers=3) == ["0", "-", "-", "-", "-", "3"]


@pytest.mark.parametrize(
    ("arguments", "rows", "sentence"),
    [
        (["rewards=[{fn: math_anser}]"], ANSWERS, "error: rewards: unknown reward 'math_anser'"),
        (
            ["answer_field=reply"],
            ANSWERS,
            "answers.jsonl line 1: field 'reply' is missing; the line has prompt, answer",
        ),
        ([], [], "answers.jsonl is empty"),
        ([], [{"answer": "8"}], "the sample has no gold answer to compare with"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    rows: list[dict[str, Any]],
    sentence: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/score.py", write(tmp_path, rows), *arguments])
    with pytest.raises(SystemExit) as ended:
        run_program(score, ScoreConfig, "jobs/score.py")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert not (tmp_path / "answers.scored.jsonl").exists()


def test_a_dry_run_counts_answers_and_groups_and_judges_nothing(tmp_path: Path) -> None:
    write(tmp_path, [*ANSWERS, {**ANSWERS[0], "answer": "It is 8."}])
    never = RewardConfig(fn="tests.jobs.test_score:judged", name="judge")
    config = ScoreConfig(file=str(tmp_path / "answers.jsonl"), id_field="source", rewards=[never])
    assert rehearse(config) == ["4 answers in 3 groups, judged by judge"]
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def judged(sample: Sample, branch: Branch) -> float:
    raise AssertionError("a dry run judges nothing")
