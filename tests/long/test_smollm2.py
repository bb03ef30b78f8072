"""Every job on a real model, SmolLM2-135M-Instruct, by the recipes of configs/smollm2 with few and short answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.conftest import ROOT
from tests.serving.ports import free_port
from troupe.actors.placement import Cluster
from troupe.config.evaluation import EvaluateConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig
from troupe.files import read_lines
from troupe.jobs.evaluate import evaluate
from troupe.jobs.train_dpo import train_dpo
from troupe.jobs.train_grpo import train
from troupe.jobs.train_reward_model import train_reward_model
from troupe.jobs.train_sft import train_sft
from troupe.serving.endpoint import Endpoint
from troupe.serving.served_models import served_models
from troupe.training.result import TrainingResult

RECIPES = ROOT / "configs" / "smollm2"
QUESTIONS = ("What is the capital of France?", "Name a colour.", "What do bees make?", "What is two and two?")
ANSWERS = (("Paris.", "Bees."), ("Red, for one.", "Seven."), ("Honey.", "Noon."), ("Four.", "Ten of them."))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """Where runs and data of this file lie; the model is where the recipes look for it, seen from the checkout."""
    path = tmp_path_factory.mktemp("smollm2")
    rows = [
        {"prompt": f"{question} ({number})", "chosen": good, "rejected": bad, "demonstration": good}
        for number in range(4)
        for question, (good, bad) in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(config: type, name: str, directory: Path, *overrides: str) -> Any:
    """The recipe of configs/smollm2 for a job, with a run in the test's directory."""
    path = f"model.path={ROOT / '.cache/models/smollm2-135m-instruct'}"
    return load_config(config, [str(RECIPES / f"{name}.yaml"), path, f"run.directory={directory}", *overrides])


def paired(config: type, name: str, directory: Path) -> Any:
    """A recipe of a supervised job on the pairs of this file."""
    settings = ["steps=2", "batch_size=4", "max_length=64", "evaluation.every=2", "checkpoint.every=2"]
    path = f"model.path={ROOT / '.cache/models/smollm2-135m-instruct'}"
    return load_config(
        config,
        [path, f"run.directory={directory}", f"run.name={name}", f"data.path={directory / 'pairs.jsonl'}", *settings,
         "engine.learning_rate=5e-5", "engine.zero_stage=1"],
    )  # fmt: skip


def test_what_make_smollm2_writes_is_what_transformers_reads_in_the_file(smollm2: Path, smollm2_gguf: Path) -> None:
    ours = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name].bfloat16())] == []
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    turns = [{"role": "user", "content": "2  12"}, {"role": "assistant", "content": "OK"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text.endswith("<|im_start|>user\n2  12<|im_end|>\n<|im_start|>assistant\nOK<|im_end|>\n")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.fixture(scope="module")
def grpo(cluster: Cluster, directory: Path) -> TrainingResult:
    return train(
        recipe(
            GRPOConfig,
            "grpo",
            directory,
            "steps=3",
            "rollout={prompts_per_step: 2, group_size: 4, max_response_tokens: 16}",
            "rewards=[{fn: 'tests.light_rewards:variety'}]",  # no two answers of a group earn the same
            "evaluation={every: 3, num_samples: 4}",
            "policy.learning_rate=1e-5",
        )
    )


def test_grpo_trains_three_steps_behind_the_gate_and_what_it_saves_is_plain(grpo: TrainingResult) -> None:
    lines = [dict(line) for line in grpo.metrics]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["consistency/logprob_gap"] < line["consistency/max_gap"] for line in lines)
    assert all(line["policy/grad_norm"] > 0 for line in lines[1:])
    assert any(name.endswith("accuracy") for name in grpo.heldout)
    _, info = AutoModelForCausalLM.from_pretrained(grpo.checkpoint, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_sft_lowers_the_loss_on_what_it_imitates(cluster: Cluster, directory: Path) -> None:
    lines = train_sft(paired(SFTConfig, "sft", directory)).metrics
    losses = [line["eval/jsonl/nll"] for line in lines if "eval/jsonl/nll" in line]
    assert losses[-1] < losses[0]


def test_dpo_prefers_the_chosen_answers_more(cluster: Cluster, directory: Path) -> None:
    lines = train_dpo(paired(DPOConfig, "dpo", directory)).metrics
    assert lines[-1]["dpo/grad_norm"] > 0


def test_a_reward_model_is_saved_with_one_number_that_plain_transformers_reads(
    cluster: Cluster, directory: Path
) -> None:
    result = train_reward_model(paired(RewardModelTrainingConfig, "reward_model", directory))
    model, info = AutoModelForSequenceClassification.from_pretrained(result.checkpoint, output_loading_info=True)
    assert (model.config.num_labels, list(info["missing_keys"])) == (1, [])
    assert float(model.score.weight.abs().max()) > 0


def test_an_evaluation_of_the_run_writes_an_answer_to_every_held_out_prompt(
    cluster: Cluster, directory: Path, grpo: TrainingResult
) -> None:
    overrides = [f"models.start={grpo.directory}", f"output={directory / 'evaluated'}"]
    evaluate(
        load_config(
            EvaluateConfig,
            [str(RECIPES / "evaluate.yaml"), *overrides, "num_samples=4", "max_response_tokens=16"],
        )
    )
    answers = read_lines(directory / "evaluated" / "answers" / "start.jsonl")
    assert len(answers) == 4
    assert all(row["prediction"].strip() for row in answers)


@pytest.fixture(scope="module")
def client(cluster: Cluster, smollm2: Path) -> Iterator[openai.OpenAI]:
    config = load_config(
        ServeConfig,
        [str(RECIPES / "serve.yaml"), f"models=[{{path: {smollm2}, name: smollm2}}]", f"port={free_port()}",
         "engine.cpu_cache_gib=0.25"],
    )  # fmt: skip
    endpoint = Endpoint(config, served_models(config), None)
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{endpoint.port}/v1", api_key="none", timeout=httpx.Timeout(120))
    endpoint.close()


def test_an_endpoint_answers_a_question_and_ends_its_turn(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    (choice,) = client.chat.completions.create(model="smollm2", messages=turns, max_tokens=40, temperature=0).choices
    assert "Paris" in str(choice.message.content)
    assert choice.finish_reason == "stop"
    assert "<|im_end|>" not in str(choice.message.content)
