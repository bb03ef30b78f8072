"""SFT, reward models and DPO as real jobs: they learn what is there to learn, and survive a stop and the death of a
worker.

They run in this process; SFT on two ranks of Ray is in tests/long/test_supervised_ranks.py.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.actors.small import write_model
from troupe.actors.frozen import FrozenModel, FrozenWorker
from troupe.actors.workers import InlineWorkers
from troupe.algorithms.packing import Batch
from troupe.chat import encode_answer
from troupe.config.models import GeneratorConfig, PlacementConfig
from troupe.config.rollout import RewardConfig
from troupe.config.supervised import DPOConfig, GenerationConfig, RewardModelTrainingConfig, SFTConfig
from troupe.errors import CheckpointError, DataError, NumericalError
from troupe.files import read_lines
from troupe.jobs.train_dpo import train_dpo
from troupe.jobs.train_reward_model import train_reward_model
from troupe.jobs.train_sft import train_sft
from troupe.records import Branch, Group, Sample
from troupe.runs.checkpoint import CheckpointStore

pytestmark = pytest.mark.usefixtures("one_rank")

STEPS = 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file lie, and the models that they start from."""
    path = tmp_path_factory.mktemp("runs")
    write_model(path / "model", tied=True)
    write_model(path / "other", tied=True, seed=1)
    return path


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def events(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / "events.jsonl")


def column(run: Path, name: str) -> list[float]:
    return [line[name] for line in read_lines(run / "metrics.jsonl") if name in line]


def sft(directory: Path, name: str, *, steps: int = STEPS) -> SFTConfig:
    return SFTConfig(
        steps=steps,
        batch_size=8,
        max_length=64,
        run={"name": name, "directory": str(directory)},
        model={"type": "pretrained", "path": str(directory / "model")},
        data={"type": "word_problems", "num_train": 40, "num_heldout": 8},
        engine={"num_ranks": 2, "precision": "fp32", "learning_rate": 3e-3, "schedule": "constant", "row_tokens": 128},
        evaluation={"every": 3},
        checkpoint={"every": 2, "keep_last": 3},
        prompt_weight=0.5,
    )


# -- trivial preferences -----------------------------------------------------------------------------------------

GOOD, FAIR, BAD = "4+4=8", "Lin has 5 pens", "books and books"


def write_preferences(path: Path, *, count: int, first: int = 0, with_three: bool = True) -> str:
    """Prompts with two answers, every third with three, of which every sixth has its worse ones tie; the last words
    tell.
    """
    lines = []
    for index in range(first, first + count):
        prompt = f"Tom has {index} pens and gets {index % 7} more. How many?\n"
        fields: dict[str, Any] = {"prompt": prompt, "best": f"{index} {GOOD}"}
        fields |= {"answers": [f"{index} {GOOD}", f"{index} {BAD}"], "ranks": [0, 1]}
        if with_three and index % 3 == 0:
            fields |= {"answers": [f"{index} {BAD}", f"{index} {FAIR}", f"{index} {GOOD}"]}
            fields |= {"ranks": [1, 1, 0] if index % 6 == 0 else [2, 1, 0]}
        lines.append(json.dumps(fields))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def data(directory: Path) -> dict[str, Any]:
    return {
        "type": "jsonl",
        "path": write_preferences(directory / "train.jsonl", count=48),
        "heldout_path": write_preferences(directory / "heldout.jsonl", count=24, first=48),
        "answers_field": "answers",
        "ranks_field": "ranks",
        "gold_field": "best",
    }


def common(directory: Path, name: str, data: dict[str, Any], *, steps: int, **engine: Any) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch_size": 16,
        "max_length": 96,
        "run": {"name": name, "directory": str(directory)},
        "model": {"type": "pretrained", "path": str(directory / "model")},
        "data": data,
        "engine": {"precision": "fp32", "zero_stage": 1, "schedule": "constant", **engine},
        "evaluation": {"every": 0},
        "checkpoint": {"every": 0},
        "placement": {"backend": "inline"},
    }


@pytest.fixture(scope="module")
def reward_model(directory: Path, data: dict[str, Any]) -> Path:
    """The run of a reward model on pairs and triples."""
    settings = common(directory, "reward_model", data, steps=16, learning_rate=3e-3)
    train_reward_model(RewardModelTrainingConfig(**settings, normalise_samples=48))
    return directory / "reward_model"


def scores_of(path: Path, samples: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
    """The scores of these answers to these prompts by the saved model, as whoever loads it sees them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    frozen = FrozenModel(InlineWorkers(FrozenWorker, [{"rank": 0, "world_size": 1}], role="reward_model"), scalar=True)
    try:
        frozen.start(str(path), precision="fp32", row_tokens=256, offload=False)
        frozen.ready(60)
        groups = [
            Group(
                sample=Sample(sample_id=prompt, prompt=prompt),
                prompt_ids=tokenizer(prompt)["input_ids"],
                branches=[Branch(token_ids=encode_answer(tokenizer, answer)) for answer in answers],
            )
            for prompt, answers in samples
        ]
        scores = frozen.scores(Batch.from_groups(groups))
        return [part.tolist() for part in scores.split([len(answers) for _, answers in samples])]
    finally:
        frozen.shutdown()


def test_a_reward_model_learns_which_of_two_or_three_answers_is_better(reward_model: Path) -> None:
    # It begins with every score 0, where equal scores are right one half.
    accuracy = column(reward_model, "eval/jsonl/accuracy")
    assert accuracy[0] == pytest.approx(0.5, abs=1e-6)
    assert accuracy[-1] > 0.9
    assert column(reward_model, "eval/jsonl/nll")[0] == pytest.approx(0.693147, abs=1e-5)
    assert column(reward_model, "eval/jsonl/calibration_error")[-1] < 0.5
    bins = json.loads((reward_model / "calibration.json").read_text())
    # Held out are 24 prompts: 16 pairs; of 8 triples 4 with three pairs each, and 4 with two, as two of their answers
    # tie.
    assert sum(one["count"] for one in bins) == 16 + 4 * 3 + 4 * 2
    assert CheckpointStore(reward_model / "checkpoints").best() == 16


def test_reference_answers_score_zero_on_average_for_whoever_loads_it(reward_model: Path, directory: Path) -> None:
    rows = read_lines(directory / "train.jsonl")
    answers = [(row["prompt"], [row["best"]]) for row in rows]  # normalise_samples names all 48
    scores = [score for (score,) in scores_of(reward_model / "checkpoints" / "latest", answers)]
    assert abs(sum(scores) / len(scores)) < 1e-4
    assert json.loads((reward_model / "checkpoints" / "latest" / "config.json").read_text())["score_mean"] != 0
    good, bad = scores_of(reward_model / "checkpoints" / "latest", [("Tom has 9 pens.\n", [f"9 {GOOD}", f"9 {BAD}"])])[
        0
    ]
    assert good > bad


@pytest.mark.parametrize("normalise_samples", [48, 0])
def test_a_reward_model_that_starts_from_another_has_one_mean_and_not_the_sum_of_two(
    reward_model: Path, directory: Path, data: dict[str, Any], normalise_samples: int
) -> None:
    start = reward_model / "checkpoints" / "latest"
    settings = common(directory, f"again-{normalise_samples}", data, steps=1, learning_rate=1e-12)
    settings["model"]["path"] = str(start)
    train_reward_model(RewardModelTrainingConfig(**settings, normalise_samples=normalise_samples))
    again = directory / f"again-{normalise_samples}" / "checkpoints" / "latest"
    means = [json.loads((path / "config.json").read_text())["score_mean"] for path in (start, again)]
    # At such a learning rate nothing is learned: the same scores, and so the same mean.
    assert means[1] == pytest.approx(means[0], abs=1e-4)
    accuracy = column(directory / f"again-{normalise_samples}", "eval/jsonl/accuracy")
    assert accuracy[0] == column(reward_model, "eval/jsonl/accuracy")[-1]


def dpo(directory: Path, name: str, data: dict[str, Any], *, steps: int = 12, **settings: Any) -> DPOConfig:
    return DPOConfig(**{**common(directory, name, data, steps=steps, learning_rate=1e-3), **settings})


@pytest.fixture(scope="module")
def dpo_run(directory: Path, data: dict[str, Any]) -> Path:
    train_dpo(dpo(directory, "dpo", data))
    return directory / "dpo"


def test_dpo_begins_at_its_reference_and_learns_to_prefer_the_better_answers(dpo_run: Path) -> None:
    # log sigmoid(0) = -ln 2, and no answer is ahead of another; fp32 rounds in other rows otherwise.
    assert column(dpo_run, "dpo/loss")[0] == pytest.approx(0.693147, abs=1e-4)
    assert column(dpo_run, "eval/jsonl/nll")[0] == pytest.approx(0.693147, abs=1e-4)
    assert column(dpo_run, "eval/jsonl/margin")[0] == pytest.approx(0, abs=1e-4)
    assert column(dpo_run, "eval/jsonl/accuracy")[-1] > 0.9
    assert column(dpo_run, "eval/jsonl/margin")[-1] > 0


def test_a_cache_of_other_weights_is_refused_by_naming_both_and_one_of_the_same_is_used(
    dpo_run: Path, directory: Path, data: dict[str, Any]
) -> None:
    cache = str(dpo_run / "reference_logprobs.safetensors")
    before = (dpo_run / "reference_logprobs.safetensors").stat().st_mtime_ns
    train_dpo(dpo(directory, "dpo-shared", data, steps=1, reference_cache=cache, loss="ipo", beta=0.5))
    assert (dpo_run / "reference_logprobs.safetensors").stat().st_mtime_ns == before  # nothing was missing
    assert column(directory / "dpo-shared", "dpo/loss")[0] == pytest.approx(1.0, abs=1e-3)  # (1 / (2 beta))^2
    other = dpo(directory, "dpo-other", data, steps=1, reference_cache=cache)
    other = other.model_copy(update={"model": other.model.model_copy(update={"path": str(directory / "other")})})
    with pytest.raises(CheckpointError, match=r"holds log-probabilities of .*, this run's reference is .*remove it"):
        train_dpo(other)


def test_a_reference_that_is_another_model_is_seen_in_the_first_loss(
    dpo_run: Path, directory: Path, data: dict[str, Any]
) -> None:
    from safetensors import safe_open

    with safe_open(dpo_run / "reference_logprobs.safetensors", "pt") as file:
        metadata, logprobs = file.metadata(), file.get_tensor("logprobs")
    # The right names with wrong numbers: a tenth of a nat too little for every token.
    save_file({"logprobs": logprobs - 0.1}, directory / "wrong.safetensors", metadata)
    with pytest.raises(NumericalError, match=r"the loss before the first step is .*its own reference is 0\.693147"):
        train_dpo(dpo(directory, "dpo-wrong", data, steps=1, reference_cache=str(directory / "wrong.safetensors")))


def test_an_adapters_reference_is_the_policy_without_it(directory: Path, data: dict[str, Any]) -> None:
    settings = common(directory, "dpo-lora", data, steps=3, learning_rate=1e-2, lora={"rank": 4})
    train_dpo(DPOConfig(**settings, reference="adapter_off"))
    losses = column(directory / "dpo-lora", "dpo/loss")
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert losses[-1] < losses[0]
    assert not (directory / "dpo-lora" / "reference_logprobs.safetensors").exists()


def test_data_without_preferences_and_samples_without_an_answer_are_told_what_is_missing(
    directory: Path, data: dict[str, Any]
) -> None:
    plain = {"type": "word_problems", "num_train": 8, "num_heldout": 4}
    with pytest.raises(DataError, match="has no ranked answers; use a data set with preferences"):
        train_reward_model(RewardModelTrainingConfig(**common(directory, "no-pairs", plain, steps=1)))
    unanswered = {key: data[key] for key in ("type", "path", "heldout_path")}
    with pytest.raises(DataError, match="has no answer to imitate; use a data set with demonstrations"):
        train_sft(SFTConfig(**common(directory, "no-answers", unanswered, steps=1)))


def test_a_model_in_training_is_asked_for_held_out_answers_with_its_own_weights(directory: Path) -> None:
    config = sft(directory, "answered", steps=2)
    train_sft(
        config.model_copy(
            update={
                "engine": config.engine.model_copy(update={"num_ranks": 1}),
                "placement": PlacementConfig(backend="inline"),
                "generation": GenerationConfig(
                    num_samples=4, max_response_tokens=6, metrics=[RewardConfig(fn="tests.light_rewards:variety")]
                ),
                "generator": GeneratorConfig(cpu_cache_gib=0.1),
                "evaluation": config.evaluation.model_copy(update={"best_metric": "variety"}),
            }
        )
    )
    run = directory / "answered"
    lines = read_lines(run / "metrics.jsonl")
    measured = [line for line in lines if "eval/word_problems/variety" in line]
    assert [line["step"] for line in measured] == [0, 2]
    # The engine has the weights of that step: the gate compared it with the trainer before it answered.
    assert all(line["consistency/logprob_gap"] < 1e-4 for line in measured)
    answers = read_lines(run / "answers.jsonl")
    assert len([answer for answer in answers if answer["step"] == 2]) == 4
    assert CheckpointStore(run / "checkpoints").best() == 2


def test_what_is_too_long_is_left_out_and_when_that_is_everything_it_is_said(directory: Path) -> None:
    settings = common(directory, "too-long", {"type": "word_problems", "num_train": 8, "num_heldout": 4}, steps=1)
    with pytest.raises(DataError, match=r"none of the 8 training samples .* max_length \(8\), the shortest with \d+"):
        train_sft(SFTConfig(**{**settings, "max_length": 8}))
    assert not (directory / "too-long").exists()  # before anything was made


def write_mostly_long(path: Path, *, count: int, short: Sequence[int]) -> str:
    """Demonstrations of which those at the places `short` alone have less than a hundred tokens."""
    answers = [f"#### {index}" if index in short else "I add the ones. " * 40 for index in range(count)]
    rows = [{"prompt": f"What is {index} + 0?", "answer": answer} for index, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_epochs_count_the_samples_that_can_be_used_and_the_others_are_said(directory: Path, caplog: Any) -> None:
    path = write_mostly_long(directory / "mostly_long.jsonl", count=40, short=range(0, 40, 5))
    heldout = write_mostly_long(directory / "held.jsonl", count=4, short=range(3))
    data = {"type": "jsonl", "path": path, "heldout_path": heldout, "gold_field": "answer"}
    settings = {**common(directory, "mostly-long", data, steps=1), "steps": None, "epochs": 2.0, "batch_size": 4}
    with caplog.at_level(logging.WARNING):
        train_sft(SFTConfig(**settings))
    assert re.search(
        r"32 of 40 training samples of jsonl are left out: longer than max_length \(96\), the longest with \d{3} tokens; "
        "raise max_length to use them",
        caplog.text,
    )
    assert "1 of 4 held-out samples of jsonl are left out" in caplog.text
    assert len(column(directory / "mostly-long", "data/tokens")) == 4  # 2 epochs of 8 samples in batches of 4
    assert column(directory / "mostly-long", "data/left_out")[-1] <= 32


@pytest.mark.parametrize("seed", range(3))
def test_a_run_on_two_usable_rows_of_many_trains(directory: Path, seed: int) -> None:
    """2 of 30 fit: between them, over the end of an epoch, up to 56 others come in a row."""
    path = write_mostly_long(directory / "two.jsonl", count=30, short=(7, 19))
    heldout = write_mostly_long(directory / "held.jsonl", count=4, short=range(3))
    data = {"type": "jsonl", "path": path, "heldout_path": heldout, "gold_field": "answer"}
    settings = {**common(directory, f"two-{seed}", data, steps=3), "batch_size": 8, "seed": seed}
    train_sft(SFTConfig(**settings))
    assert len(column(directory / f"two-{seed}", "data/tokens")) == 3
