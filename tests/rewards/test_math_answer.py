import asyncio

import pytest

from tests.rewards.conftest import branch, group_of
from troupe.config.rollout import RewardConfig
from troupe.errors import DataError
from troupe.records import Sample
from troupe.rewards import mathematics
from troupe.rewards.answers import MathAnswer
from troupe.rewards.build import build_rewards

EIGHT = Sample(sample_id="s", prompt="?", gold="8")


def judge(text: str, *, gold: str | None = "8", strict: bool = True) -> float:
    sample = Sample(sample_id="s", prompt="?", gold=gold)

    async def judged() -> float:
        return await MathAnswer(strict=False)(sample, branch(text))

    return asyncio.run(judged()) if not strict else MathAnswer()(sample, branch(text))


@pytest.mark.parametrize("text", ["#### 8", "3+5=8\n#### 8", "3+5=8\n  #### 8 \n", "#### 9\n#### 8", "####8"])
def test_strict_accepts_an_answer_that_ends_with_the_gold_line(text: str) -> None:
    assert judge(text) == 1.0


@pytest.mark.parametrize(
    "text",
    ["", "8", "So the answer is 8.", "3+5=8 #### 8", "#### 8\nThank you!", "#### 8 pens", "#### 8.", "#### 08", "##### " "8",
     "#### 8\n#### 9", "#### 8 #### 8", "####", "####\n8", "#### eight"],
)  # fmt: skip
def test_strict_refuses_whatever_else_ends_an_answer(text: str) -> None:
    assert judge(text) == 0.0


@pytest.mark.parametrize(
    ("gold", "said"), [("1234", "1,234"), ("1,234", "1234"), ("-5", "-5"), ("1234567", "1 234 567"), ("8", "8.0")]
)
def test_commas_and_spaces_in_numbers_do_not_count(gold: str, said: str) -> None:
    assert judge(f"#### {said}", gold=gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("8", "3+5=8\n#### 8", True),
        ("8", "So the answer is 8.", True),
        ("8", "The answer is \\boxed{8}.", True),
        ("8", "The answer is $\\frac{16}{2}$.", True),
        ("1234", "That makes 1,234 in all.", True),
        ("1/2", "It is 0.5", True),
        ("3\\pi", "It is $3\\pi$", True),
        ("3\\pi", "It is 3", False),
        ("x^2+1", "It is $1+x^2$", True),
        ("8", "8 at first, 9 in the end", False),
        ("8", "I do not know.", False),
        ("8", "", False),
        ("8", "\\frac{{{", False),
    ],
)
def test_lenient_compares_the_last_answer_as_mathematics(gold: str, text: str, right: bool) -> None:
    assert judge(text, gold=gold, strict=False) == float(right)


@pytest.mark.parametrize(
    ("gold", "number"),
    [
        ("3 and 4 make <<3+4=7>>7.\n#### 7", "7"),  # GSM8K's own column
        ("7.0", "7"),
        ("#### 7", "7"),
        (r"\boxed{7}", "7"),
        (r"So $x = 7$, that is \boxed{\$7}.", "7"),
        ("$7", "7"),
        ("7 apples", "7"),
        ("The answer is 7.", "7"),
        ("1,000", "1000"),
        ("1e3", "1000"),
        ("1e-3", "0.001"),
        ("-$1,234.50", "-1234.5"),
        ("50%", "50"),
        ("1/2 cup", "1/2"),
        (".5", "0.5"),
    ],
)
def test_gold_as_people_write_it_is_the_number_that_a_strict_answer_gives(gold: str, number: str) -> None:
    assert judge(f"#### {number}", gold=gold) == 1.0
    assert judge("#### 8", gold=gold) == 0.0


@pytest.mark.parametrize(
    "gold", ["nobody", "1 1/2", "12:30", "2x", "5!", "3\\pi", "\\frac{1}{2}", "x^2+1", "x > 7", "1,2", "- 7"]
)
def test_gold_that_is_more_or_less_than_a_number_is_refused_rather_than_read_wrongly(gold: str) -> None:
    with pytest.raises(ValueError, match="write the number alone or behind '#### '"):
        MathAnswer().check(Sample(sample_id="s", prompt="?", gold=gold))
    MathAnswer(strict=False).check(Sample(sample_id="s", prompt="?", gold=gold))


def test_the_first_sample_without_a_gold_number_is_named_before_anything_is_judged() -> None:
    samples = [Sample(sample_id=f"own.jsonl:{line}", prompt="?", gold=gold) for line, gold in ((1, "7"), (2, "nobody"))]
    with pytest.raises(DataError, match=r"^own\.jsonl:2: reward math_answer: the gold answer 'nobody' holds no number"):
        build_rewards([RewardConfig(fn="math_answer")]).check(samples)


ENDLESS = (r"$\prod_{n=1}^{100000000} n$", "$9^{9^{9}}$", r"$\binom{\binom{100000}{5000}}{500}$")


def test_an_endless_comparison_is_a_wrong_answer_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "LIMIT_S", 1.0)
    rewards = build_rewards([RewardConfig(fn="math_answer", args={"strict": False})])
    beats = 0

    async def scored() -> list[float | None]:
        nonlocal beats
        judging = asyncio.create_task(rewards.score(group_of(EIGHT, *ENDLESS, "So it is 8.")))
        while not judging.done():
            beats += 1
            await asyncio.sleep(0.01)
        return [score.value for score in judging.result()]

    assert asyncio.run(scored()) == [0.0, 0.0, 0.0, 1.0]
    assert beats > 100  # three limits of a second, in which the event loop went on


@pytest.mark.parametrize("gold", [None, " "])
def test_a_sample_without_gold_is_a_bug_and_not_a_wrong_answer(gold: str | None) -> None:
    with pytest.raises(ValueError, match="no gold answer"):
        judge("#### 8", gold=gold)


def test_a_gold_answer_that_is_no_mathematics_is_a_bug_and_not_a_wrong_answer() -> None:
    with pytest.raises(ValueError, match="the gold answer '---' is no mathematics"):
        judge("8", gold="---", strict=False)
