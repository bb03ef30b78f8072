import asyncio
from pathlib import Path

import pytest

from tests.rewards.conftest import group_of
from troupe.config.rollout import RewardConfig
from troupe.errors import ConfigError
from troupe.records import Sample
from troupe.rewards.build import build_rewards

EXAMPLES = "tests.rewards.example_rewards"


@pytest.mark.parametrize(
    ("fn", "args", "sentence"),
    [
        ("math_anser", {}, "unknown reward 'math_anser'; did you mean 'math_answer'"),
        ("brevity", {}, "built in are math_answer, regex_format, length, rouge, remote_reward, remote_comparison"),
        ("no_such_module:f", {}, r"cannot import 'no_such_module' .*ModuleNotFoundError"),
        (f"{EXAMPLES}:no_such_function", {}, "has no function 'no_such_function'"),
        (f"{EXAMPLES}:NOT_A_FUNCTION", {}, "is a int, not a function"),
        (f"{EXAMPLES}:misnamed", {}, "the second parameter of .* is called 'answer'; call it 'branch'"),
        (f"{EXAMPLES}:lonely", {}, "the second parameter of .* is missing"),
        (f"{EXAMPLES}:Novelty", {"memory": 0}, r"argument memory: .* greater than or equal to 1 \(got 0\)"),
        (f"{EXAMPLES}:Novelty", {"memry": 1}, "unknown argument 'memry'; its arguments are: memory"),
        (f"{EXAMPLES}:Novelty", {"memory": 13}, "Novelty: 13 answers bring bad luck"),
        (f"{EXAMPLES}:Novelty", {"memory": 14}, r"Novelty cannot be built \(ZeroDivisionError: .* by zero\)"),
        (f"{EXAMPLES}:Mute", {}, "Mute is a class without __call__"),
        ("length", {"limt": 4}, "length: unknown argument 'limt'; its arguments are: limit, target, unit"),
        ("length", {}, "length: missing a required argument: 'limit'"),
        ("length", {"limit": 0}, r"argument limit: Input should be greater than or equal to 1 \(got 0\)"),
        ("length", {"limit": 8, "target": 9}, r"length: target \(9\) must be below limit \(8\)"),
        ("length", {"limit": 8, "target": 8}, r"length: target \(8\) must be below limit \(8\)"),
        ("length", {"limit": 4, "unit": "lines"}, "argument unit: Input should be 'tokens', 'words' or 'chars'"),
        ("rouge", {"variant": "rouge9"}, "argument variant: Input should be 'rouge1'"),
        ("regex_format", {"pattern": "(unclosed"}, "argument pattern: Input should be a valid regular expression"),
    ],
)
def test_a_mistake_in_a_reward_is_found_before_anything_starts(fn: str, args: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_rewards([RewardConfig(fn=fn, args=args)])


def test_a_module_that_fails_while_it_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot import 'broken_rewards' .*ZeroDivisionError: division by zero"):
        build_rewards([RewardConfig(fn="broken_rewards:f")])


def test_a_module_beside_the_started_job_is_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Sample
) -> None:
    (tmp_path / "my_own_rewards.py").write_text("def always(sample, branch, *, value=2):\n    return value\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    rewards = build_rewards([RewardConfig(fn="my_own_rewards:always", args={"value": 3})])
    assert asyncio.run(rewards.score(group_of(sample, "x")))[0].value == 3.0


def test_two_rewards_of_one_name_are_refused_until_one_is_renamed() -> None:
    short, long = RewardConfig(fn="length", args={"limit": 4}), RewardConfig(fn="length", args={"limit": 40})
    with pytest.raises(ConfigError, match="2 rewards are called 'length' in the logs"):
        build_rewards([short, long])
    assert build_rewards([short, long.model_copy(update={"name": "very_long"})]).labels == ["length", "very_long"]


def test_no_rewards_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="name at least one function"):
        build_rewards([])


def test_a_class_is_built_once_and_keeps_what_it_saw(sample: Sample) -> None:
    rewards = build_rewards([RewardConfig(fn=f"{EXAMPLES}:Novelty", name="novelty", args={"memory": 2})])
    scores = [asyncio.run(rewards.score(group_of(sample, text)))[0].value for text in ("a", "b", "a", "c", "a")]
    # It remembers the last two new answers: a and b when the third comes, b and c when the fifth does.
    assert scores == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert rewards.counters == {"novelty/repeats": 1}
