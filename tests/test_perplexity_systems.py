"""The full recipes of systems 2 and 4 on rows with the real fields: what policy and scorer read, piece by piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from troupe.chat import encode_prompt
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.data import load_data
from troupe.rewards.scorer_prompt import ScorerPrompt
from troupe.training.scratch import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "Natalia sold 48 clips in April and half as many in May. How many in all?"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([QUESTION, "The final answer is: 72", "In summary: they leave the harbour"], 400, 4096)


def scorer(config: GRPOConfig, tokenizer: Any) -> ScorerPrompt:
    assert config.perplexity_reward is not None
    return ScorerPrompt(tokenizer, config.perplexity_reward, max_length=4096)


def test_system_2_asks_for_reasoning_and_the_scorer_reads_question_reasoning_and_number(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"question": QUESTION, "answer": f"48/2 = <<48/2=24>>24\n#### {number}"} for number in ("1,072", "72")]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = ROOT / "configs/gsm8k_perplexity/full.yaml"
    config = load_config(GRPOConfig, [str(recipe), f"data.path={tmp_path}"])
    sample = load_data(config.data).train[0]
    policy = tokenizer.decode(encode_prompt(tokenizer, sample))
    assert "Close by asking for the number alone." in policy
    assert "1072" not in policy

    prompt = scorer(config, tokenizer)
    frame = prompt.frame(sample)
    assert tokenizer.decode(frame.prompt_ids) == f"{QUESTION}\n"
    assert tokenizer.decode(prompt.without_answer(frame).token_ids) == "1072"
    handed = prompt.handed_over("May: 24 clips.\n")
    assert (
        tokenizer.decode(prompt.with_answer(frame, str(handed)).token_ids)
        == "May: 24 clips.\nThe final answer is: 1072"
    )


def test_system_4_asks_for_a_plan_and_the_scorer_reads_sections_plan_and_chapter(tokenizer: Any) -> None:
    recipe = ROOT / "configs/next_chapter/full/grpo.yaml"
    rows = f"data.path={ROOT / 'tests/fixtures/next_chapter'}"
    config = load_config(
        GRPOConfig, [str(recipe), rows, "data.min_chapter_words=1"]
    )  # the fixture's chapters are short
    data = load_data(config.data)
    prompt = scorer(config, tokenizer)
    for sample in (*data.train, *data.heldout):
        assert "In summary:" in tokenizer.decode(encode_prompt(tokenizer, sample))
        frame = prompt.frame(sample)
        shared = tokenizer.decode(frame.prompt_ids)
        assert "In summary:" not in shared  # it is asked for the chapter, not for a plan
        assert str(sample.gold) not in shared
        plain = tokenizer.decode(prompt.without_answer(frame).token_ids)
        assert plain == f"<|im_end|>\n<|im_start|>assistant\n{sample.gold}<|im_end|>"
        handed = str(prompt.handed_over("He must go. In summary: they {leave}."))
        planned = tokenizer.decode(prompt.with_answer(frame, handed).token_ids)
        assert planned.startswith("\n\n### Detailed Plan for the Next Chapter\nthey {leave}.<|im_end|>")
        assert planned.endswith(plain)
