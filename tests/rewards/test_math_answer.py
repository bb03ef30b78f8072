import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.records import Sample
from rewards.answers import math_answer
from tests.rewards.conftest import branch


def judge(text: str, *, gold: str = "8", strict: bool = True) -> float:
    return math_answer(Sample(sample_id="s", prompt="?", gold=gold), branch(text), strict=strict)


@pytest.mark.parametrize("text", ["#### 8", "3+5=8\n#### 8", "3+5=8\n  #### 8 \n", "#### 9\n#### 8", "####8"])
def test_strict_accepts_an_answer_that_ends_with_the_gold_line(text: str) -> None:
    assert judge(text) == 1.0


@pytest.mark.parametrize(
    "text",
    ["", "8", "So the answer is 8.", "3+5=8 #### 8", "#### 8\nThank you!", "#### 8 pens", "#### 8.", "#### 08", "##### 8",
     "#### 8\n#### 9", "#### 8 #### 8", "####", "####\n8", "#### eight"],
)  # fmt: skip
def test_strict_refuses_whatever_else_ends_an_answer(text: str) -> None:
    assert judge(text) == 0.0


@pytest.mark.parametrize(
    ("gold", "said"), [("1234", "1,234"), ("1,234", "1234"), ("-5", "-5"), ("1234567", "1 234 567")]
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


def test_lenient_works_outside_the_main_thread() -> None:
    # math-verify's own timeouts are alarm signals, which raise there.
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(judge("\\boxed{8}", strict=False)))
    thread.start()
    thread.join(timeout=60)
    assert found == [1.0]


def test_numbers_too_large_to_compute_are_wrong_answers_and_do_not_hang() -> None:
    # Sympy would compute these in one uninterruptible call, so the test runs in a process that can be killed.
    script = (
        "from tests.rewards.test_math_answer import judge\n"
        "for text in ('$9^{9^{9}}$', '9**9**9', '$9^{99999999}$', '$(9^9)^{9^9}$', '\\\\boxed{(9^9)!}', '$99999999!$',\n"
        "             '$\\\\binom{99999999}{5000000}$', '\\\\boxed{10^{-9999999}}'):\n"
        "    assert judge(text, strict=False) == 0.0, text\n"
        "assert judge('$2^{3}$', strict=False) == judge('$(2^{2^{0}})^{3}$', strict=False) == 1.0\n"
        "assert judge('$5!$', gold='120', strict=False) == judge('$x^{2y}$', gold='$x^{2y}$', strict=False) == 1.0\n"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("gold", [None, " "])
def test_a_sample_without_gold_is_a_bug_and_not_a_wrong_answer(gold: str | None) -> None:
    with pytest.raises(ValueError, match="no gold answer"):
        math_answer(Sample(sample_id="s", prompt="?", gold=gold), branch("#### 8"))


def test_a_gold_answer_that_is_no_mathematics_is_a_bug_and_not_a_wrong_answer() -> None:
    with pytest.raises(ValueError, match="the gold answer '---' is no mathematics"):
        judge("8", gold="---", strict=False)
