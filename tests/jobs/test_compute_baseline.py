"""The baseline job on a real tiny model in this process: computed once, gone on with, refused when stale."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import troupe.jobs.compute_baseline as job
from tests.actors.small import write_model
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.errors import CheckpointError, ConfigError, DataError
from troupe.files import read_lines

QUESTIONS = [{"prompt": f"Tom has {n} pens and buys 5 more. How many?", "answer": str(n + 5)} for n in range(9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("scorer"), tied=True)


@pytest.fixture
def recipe(model: str, tmp_path: Path) -> Callable[..., GRPOConfig]:
    """Builds the recipe of nine questions, two of them held out."""
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))

    def build(*overrides: str) -> GRPOConfig:
        return load_config(
            GRPOConfig,
            [
                "model.type=pretrained",
                f"model.path={model}",
                "rollout.max_prompt_tokens=80",
                "rollout.max_response_tokens=40",
                "data.type=jsonl",
                f"data.path={tmp_path / 'questions.jsonl'}",
                "data.gold_field=answer",
                "data.system_prompt=Think.",
                "data.num_heldout=2",
                "placement.backend=inline",
                f"perplexity_reward.baseline_file={tmp_path / 'baselines.jsonl'}",
                "perplexity_reward.precision=fp32",
                *overrides,
            ],
        )

    return build


def test_every_baseline_is_the_perplexity_of_the_gold_answer_after_the_question(
    recipe: Callable[..., GRPOConfig], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job.compute_baseline(recipe())
    header, *rows = read_lines(tmp_path / "baselines.jsonl")
    assert set(header["baselines"]) == {"model", "tokenizer", "template", "precision"}
    assert len(rows) == 9

    tokenizer, plain = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).float()
    row = next(row for row in rows if row["sample_id"].endswith(":4"))  # the fourth line: 3 + 5
    text = f"<|im_start|>user\n{QUESTIONS[3]['prompt']}<|im_end|>\n<|im_start|>assistant\n8"
    tokens = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logprobs = plain(tokens).logits[0, -2].double().log_softmax(-1)
    assert row["nll"] == pytest.approx(-float(logprobs[tokens[0, -1]]), abs=1e-5)
    assert row["num_tokens"] == 1
    assert f"9 baselines in {tmp_path / 'baselines.jsonl'}" in capsys.readouterr().out.replace("\n", "")


def test_a_second_call_computes_what_is_missing_and_nothing_else(
    recipe: Callable[..., GRPOConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = job.baselines_of

    def counted(scorer: Any, prompt: Any, samples: Any) -> Any:
        computed.append(len(samples))
        if len(computed) == 2:
            raise KeyboardInterrupt
        return compute(scorer, prompt, samples)

    monkeypatch.setattr(job, "baselines_of", counted)
    monkeypatch.setattr(job, "SAMPLES_PER_READ", 4)
    file = tmp_path / "baselines.parquet"
    config = recipe(f"perplexity_reward.baseline_file={file}")
    with pytest.raises(KeyboardInterrupt):
        job.compute_baseline(config)
    job.compute_baseline(config)
    job.compute_baseline(config)
    assert computed == [4, 4, 4, 1]  # the second one came to nothing


def test_a_file_of_another_model_or_of_another_question_is_refused(
    recipe: Callable[..., GRPOConfig], tmp_path: Path
) -> None:
    job.compute_baseline(recipe())
    other = write_model(tmp_path / "other", tied=True, seed=1)
    with pytest.raises(CheckpointError, match=r"is stale \(model [0-9a-f]{16} in the file and [0-9a-f]{16} now\)"):
        job.compute_baseline(recipe(f"perplexity_reward.path={other}"))
    with pytest.raises(CheckpointError, match=r"is stale \(template [0-9a-f]{16} in the file and"):
        job.compute_baseline(recipe("perplexity_reward.form=text"))


def test_what_cannot_be_computed_is_said_before_a_model_is_loaded(
    recipe: Callable[..., GRPOConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.RoleStarter, "scorer", lambda *_, **__: pytest.fail("the scorer was started"))
    with pytest.raises(ConfigError, match="the recipe has no perplexity_reward"):
        job.compute_baseline(load_config(GRPOConfig, []))
    with pytest.raises(ConfigError, match="baseline_file is not set"):
        job.compute_baseline(recipe("perplexity_reward.baseline_file=null"))
    with pytest.raises(
        DataError, match=r"questions\.jsonl:\d+: its prompt and gold answer take \d+ tokens .* which reads 20,"
    ):
        job.compute_baseline(recipe("perplexity_reward.max_length=20"))


def test_the_summary_names_the_median_and_the_extremes(recipe: Callable[..., GRPOConfig], tmp_path: Path) -> None:
    from troupe.rewards.baselines import Baseline, BaselineFile, Identity

    file = BaselineFile(tmp_path / "b.jsonl", Identity(model="", tokenizer="", template="", precision=""))
    file.add([Baseline(sample_id=str(n), nll=math.log(n), num_tokens=1, digest="") for n in (1, 4, 25)])
    assert job.summary(file).endswith("perplexity of the gold answer 4 in the median, 1 to 25")
