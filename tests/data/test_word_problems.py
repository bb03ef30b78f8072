import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from troupe.config.made_data import WordProblemsConfig
from troupe.data import load_data, word_problems
from troupe.data.word_problems import load_word_problems
from troupe.errors import DataError
from troupe.records import Branch, Sample
from troupe.rewards.answers import MathAnswer

ROOT = Path(__file__).resolve().parents[2]
SMALL = WordProblemsConfig(num_train=2000, num_heldout=100)


def text_of(sample: Sample) -> str:
    (message,) = sample.prompt
    assert message["role"] == "user"
    return message["content"]


def formatted(sample: Sample) -> bool:
    return sample.fields["demonstration"].endswith(f"\n#### {sample.gold}")


def test_the_gold_answer_solves_the_story() -> None:
    for sample in load_word_problems(SMALL).train:
        first, second = map(int, re.findall(r"\d+", text_of(sample)))
        by_story = {"buys": first + second, "gives": first - second, "fills": first * second}
        (result,) = [result for word, result in by_story.items() if word in text_of(sample)]
        assert sample.gold == str(result)
        assert sample.fields["demonstration"].splitlines()[0].endswith(f"={result}")


def test_held_out_problems_are_distinct_and_occur_nowhere_in_training() -> None:
    data = load_word_problems(WordProblemsConfig(num_train=5000, num_heldout=2000))
    heldout = [text_of(sample) for sample in data.heldout]
    assert len(set(heldout)) == 2000
    assert not set(heldout) & {text_of(sample) for sample in data.train}


def test_the_asked_share_of_demonstrations_lacks_the_answer_line() -> None:
    # 2,000 draws at 0.75: standard deviation sqrt(0.75 * 0.25 / 2000) = 0.0097; four of them.
    data = load_word_problems(SMALL)
    assert sum(not formatted(sample) for sample in data.train) / 2000 == pytest.approx(0.75, abs=0.039)
    all_formatted = load_word_problems(SMALL.model_copy(update={"unformatted_fraction": 0.0}))
    assert all(formatted(sample) for sample in all_formatted.train)


def test_a_strict_reward_accepts_exactly_the_formatted_demonstrations() -> None:
    for sample in load_word_problems(SMALL).train[:300]:
        answer = Branch(token_ids=(), text=sample.fields["demonstration"])
        assert MathAnswer()(sample, answer) == float(formatted(sample))


def test_the_seed_decides_the_problems_and_nothing_else_does() -> None:
    script = (
        "import json; from troupe.config.data import WordProblemsConfig; from troupe.data import load_data;"
        "d = load_data(WordProblemsConfig(num_train=50, num_heldout=5, seed=4));"
        "print(json.dumps([[s.sample_id, s.prompt, s.gold, dict(s.fields)] for s in [*d.train, *d.heldout]]))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    here = load_data(WordProblemsConfig(num_train=50, num_heldout=5, seed=4))
    assert [json.loads(text) for text in texts] == [
        [[s.sample_id, s.prompt, s.gold, dict(s.fields)] for s in [*here.train, *here.heldout]]
    ]
    other = load_data(WordProblemsConfig(num_train=50, num_heldout=5, seed=5))
    assert [text_of(s) for s in other.train] != [text_of(s) for s in here.train]


def test_more_training_problems_do_not_change_the_held_out_set() -> None:
    few, many = (load_word_problems(WordProblemsConfig(num_train=n, num_heldout=50)) for n in (10, 1000))
    assert few.heldout == many.heldout
    assert few.train == many.train[:10]


def test_a_held_out_set_larger_than_the_world_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    # One name and one item leave 49 * 49 sums, at most 55 * 58 differences and 8 * 8 products: fewer than 6,000.
    monkeypatch.setattr(word_problems, "NAMES", ("Tom",))
    monkeypatch.setattr(word_problems, "ITEMS", ("pens",))
    with pytest.raises(DataError, match=r"lower data\.num_heldout \(6000\)"):
        load_word_problems(WordProblemsConfig(num_train=1, num_heldout=6000))
