"""What a report shows of answers: groups at equal distances, the same samples before and after, paired changes."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import record
from troupe.report import samples
from troupe.report.samples import (
    before_and_after,
    change_within,
    difference_between,
    kept_groups,
    paired_change,
    reward_weights,
)


def row(step: int, sample: str, name: str = "words", prompt: str = "?", **metrics: Any) -> dict[str, Any]:
    return {
        "step": step, "set": name, "sample_id": sample, "prompt": prompt, "gold": None, "text": f"{sample}@{step}",
        "metrics": metrics,
    }  # fmt: skip


F1 = {"evaluation": {"best_metric": "f1"}}


# -- groups ------------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_group_of_one_whose_score_is_the_metric_that_decides(tmp_path: Path) -> None:
    answers = [row(0, "a", em=1.0, f1=0.5), row(0, "b", em=1.0), row(0, "c", f1="high"), row(0, "d")]
    groups, count = kept_groups(record(directory=tmp_path, answers=answers, config=F1))
    assert count == 4
    assert [group["branches"][0]["score"] for group in groups] == [0.5, 1.0, None, None]
    assert groups[0]["branches"][0]["parts"] == {"em": 1.0, "f1": 0.5}
    assert {group["set"] for group in groups} == {"words"}


def test_sampled_groups_are_read_from_the_file_and_lines_that_are_odd_do_no_harm(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "sample_id": "a", "prompt": "p", "branches": [{"text": "x", "score": 1.0}, "odd", None]},
        {"step": 2},
        {"step": 3, "branches": None},
    ]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups, count = kept_groups(record(directory=tmp_path))
    assert count == 3
    assert [len(group["branches"]) for group in groups] == [1, 0, 0]
    assert groups[0] == {"set": "", "step": 1, "sample_id": "a", "prompt": "p", "gold": None, "branches": [
        {"text": "x", "score": 1.0}
    ]}  # fmt: skip


def test_what_turns_say_is_in_a_page_once(tmp_path: Path) -> None:
    turns = [{"role": "assistant", "trained": True, "tokens": ["x", "y"], "logprobs": [-0.5, 0.0]}]
    line = {"step": 1, "branches": [{"text": "xy", "score": 1.0, "turns": turns}]}
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(line) + "\n")
    answers = [{**row(1, "a", em=1.0), "turns": turns}]
    (held_out, group), _ = kept_groups(record(directory=tmp_path, answers=answers))
    assert group["branches"] == [{"score": 1.0, "turns": turns}]
    assert held_out["branches"] == [{"score": 1.0, "parts": {"em": 1.0}, "turns": turns}]


def test_weights_are_those_of_the_recipe_by_the_names_of_the_parts() -> None:
    rewards = [{"fn": "math_answer", "name": None, "weight": 1.0}, {"fn": "my_rewards:brief", "weight": 0.25}]
    rewards += [{"fn": "troupe.rewards.form:length", "name": "short"}]
    recipe = {"rewards": rewards, "reward_model": {"path": "m", "weight": 2.0}, "perplexity_reward": None}
    weights = {"math_answer": 1.0, "brief": 0.25, "short": 1.0, "reward_model": 2.0}
    assert reward_weights(recipe) == {"environment": 1.0, "agent": 1.0, **weights}
    assert reward_weights({}) == {"environment": 1.0, "agent": 1.0}


@pytest.mark.parametrize("count", [1, 2, 9, 10, 57])
def test_of_too_many_groups_every_nth_is_kept_with_the_last_and_never_more_than_fit(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MOST_BYTES", 1500)
    lines = [{"step": step, "sample_id": "a", "prompt": "p" * 80, "branches": []} for step in range(count)]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups, of = kept_groups(record(directory=tmp_path))
    steps = [group["step"] for group in groups]
    assert of == count
    assert steps[0] == 0
    assert steps[-1] == count - 1
    distances = {after - before for before, after in itertools.pairwise(steps[:-1])}
    assert len(distances) <= 1  # the last one may be nearer
    assert samples._size(groups) <= 1500


def test_too_many_answers_leave_room_for_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_BYTES", 4000)
    answers = [row(step, f"s/{step}", f1=0.5) for step in range(60)]
    (tmp_path / "rollouts.jsonl").write_text('{"step": 1, "branches": []}\n{"step": 2, "branches": []}\n')
    groups, of = kept_groups(record(directory=tmp_path, answers=answers))
    assert of == 62
    assert [group["step"] for group in groups if group["set"] == ""] == [1, 2]
    kept = [group["step"] for group in groups if group["set"] == "words"]
    assert kept[-1] == 59
    assert 5 < len(kept) < 60


# -- before and after --------------------------------------------------------------------------------------------------


def test_a_set_shows_the_samples_of_its_first_and_last_evaluation() -> None:
    answers = [
        row(0, "a", f1=0.0), row(0, "b", f1=1.0), row(0, "gone", f1=1.0), row(5, "a", f1=0.5),
        row(9, "a", f1=1.0), row(9, "b", f1=0.5), row(9, "new", f1=1.0),
    ]  # fmt: skip
    (found,) = before_and_after(record(answers=answers, config=F1))
    assert [[one["text"] for one in pair] for pair in found["pairs"]] == [["a@0", "a@9"], ["b@0", "b@9"]]
    assert found["tally"] == "F1 rose on 1, fell on 1, stayed on 0."
    assert found["count"] == 2


def test_after_one_evaluation_there_is_no_change_to_tell() -> None:
    (found,) = before_and_after(record(answers=[row(0, "a", f1=0.0), row(0, "b", f1=1.0)], config=F1))
    assert [len(pair) for pair in found["pairs"]] == [1, 1]
    assert found["tally"] == ""


def test_each_set_is_told_by_itself_and_only_the_first_samples_are_shown() -> None:
    answers = [row(step, f"s/{n}", name, f1=float(step)) for name in ("x", "y") for step in (0, 1) for n in range(30)]
    found = list(before_and_after(record(answers=answers)))
    assert [(one["set"], one["count"], len(one["pairs"])) for one in found] == [("x", 30, 24), ("y", 30, 24)]
    assert found[0]["tally"] == "F1 rose on 30, fell on 0, stayed on 0."  # of all, not of those shown


def test_answers_without_metrics_have_no_tally_and_odd_values_count_as_0() -> None:
    (plain,) = before_and_after(record(answers=[row(0, "a"), row(1, "a")]))
    assert plain["tally"] == ""
    odd = [row(0, "a", f1=float("nan")), row(1, "a", f1="high"), row(0, "b", f1=0.0), row(1, "b", f1=1.0)]
    (found,) = before_and_after(record(answers=odd))
    assert found["tally"] == "F1 rose on 1, fell on 0, stayed on 1."


# -- paired changes ----------------------------------------------------------------------------------------------------


def test_a_change_is_over_the_samples_that_have_the_metric_twice() -> None:
    answers = [row(0, "a", f1=0.0), row(0, "b", f1=0.25), row(0, "c", em=1.0)]
    answers += [row(3, "a", f1=1.0), row(3, "b", f1=0.75), row(3, "c", em=1.0, f1=1.0)]
    found = change_within(record(answers=answers), "eval/words/f1")
    assert found is not None
    estimate, count = found
    assert count == 2
    assert estimate.mean == (1.0 + 0.5) / 2
    assert 0.5 <= estimate.low <= estimate.mean <= estimate.high <= 1.0


def test_without_two_pairs_or_any_answer_there_is_no_change() -> None:
    assert change_within(record(), "eval/words/f1") is None
    assert change_within(record(answers=[row(0, "a", f1=0.0), row(1, "a", f1=1.0)]), "eval/words/f1") is None
    assert change_within(record(answers=[row(0, "a", f1=0.0), row(0, "b", f1=0.0)]), "eval/words/f1") is None
    assert paired_change([], "words/f1") is None


def test_the_metric_of_one_set_is_not_that_of_another() -> None:
    answers = [
        row(step, f"s/{n}", name, f1=float(step * (name == "x"))) for name in "xy" for step in (0, 1) for n in "ab"
    ]
    run = record(answers=answers)
    for name, mean in (("x", 1.0), ("y", 0.0)):
        found = change_within(run, f"eval/{name}/f1")
        assert found is not None
        assert (found[0].mean, found[1]) == (mean, 2)


def test_two_runs_differ_over_the_samples_that_both_answered_with_the_same_prompt() -> None:
    one = record(
        answers=[row(0, "a", f1=9.0), row(2, "a", f1=0.0), row(2, "b", f1=0.5), row(2, "c", prompt="!", f1=0.0)]
    )
    other = record(answers=[row(7, "b", f1=0.25), row(7, "a", f1=1.0), row(7, "c", f1=1.0), row(7, "d", f1=1.0)])
    found = difference_between(one, other, "eval/words/f1")
    assert found is not None
    # a: 1 - 0, b: 0.25 - 0.5; c was asked otherwise, d was not asked of the first, step 0 is not the last.
    assert (found[0].mean, found[1]) == ((1.0 - 0.25) / 2, 2)
    back = difference_between(other, one, "eval/words/f1")
    assert back is not None
    assert back[0].mean == -found[0].mean


def test_a_change_does_not_depend_on_the_order_of_the_answers() -> None:
    answers = [row(step, f"s/{n}", f1=float((n * (step + 1)) % 3)) for step in (0, 1) for n in range(12)]
    shuffled = answers[:]
    random.Random(1).shuffle(shuffled)
    one, other = (change_within(record(answers=each), "eval/words/f1") for each in (answers, shuffled))
    assert one is not None
    assert other is not None
    assert (one[0].mean, one[1]) == pytest.approx((other[0].mean, other[1]))
