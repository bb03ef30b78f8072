"""Where two passes over the same tokens are compared, a training pass is without noise, whatever the model's config
says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, GPT2Config

from tests.actors.small import SMALL, ragged, with_targets, write_weights
from tests.actors.test_engine import engine
from tests.algorithms.test_objective import preferences
from troupe.algorithms.advantage_stage import with_loss_weights, with_preference_pairs
from troupe.algorithms.loading import load_model
from troupe.algorithms.objective import PolicyObjective, PreferenceObjective, SupervisedObjective
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.loader import load_config
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig
from troupe.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_rank")

# GPT-2's own defaults are a dropout of 0.1 in the embedding, in attention and in the residual stream.
NOISY = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2)
FIELDS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    assert {getattr(NOISY, name) for name in FIELDS} == {0.1}
    return write_weights(NOISY, tmp_path_factory.mktemp("noisy"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_ratio_of_a_policy_is_exactly_1(model_path: str, checkpointing: bool) -> None:
    batch = with_targets(ragged(vocab=300))
    with engine(model_path, gradient_checkpointing=checkpointing) as built:
        batch = batch.with_columns(old_logprobs=built.outputs(batch))
        metrics = built.update(batch, PolicyObjective(AlgorithmConfig()))
    assert metrics["policy/old_kl"] == 0.0  # of every token: the estimate is above 0 for any other ratio than 1
    assert metrics["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)  # its weights are rounded


def test_the_first_loss_of_dpo_is_ln_2(model_path: str) -> None:
    groups = preferences()
    with engine(model_path) as built:
        batch = with_preference_pairs(Batch.from_groups(groups), groups)
        batch = batch.with_columns(ref_logprobs=built.outputs(batch))
        assert built.update(batch, PreferenceObjective(beta=0.1))["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_sft_has_the_dropout_of_its_recipe_and_the_same_one_again_when_it_is_resumed(
    model_path: str, tmp_path: Path
) -> None:
    batch = with_loss_weights(Batch.from_groups(ragged(vocab=300)), "token_mean", prompt_weight=0.0)
    objective = SupervisedObjective()

    def first_loss(**settings: Any) -> tuple[float, float]:
        with engine(model_path, **settings) as built:
            measured = built.evaluate_loss(batch, objective)["loss"]
            return measured, built.update(batch, objective)["loss"]

    measured, loss = first_loss()
    assert loss == measured
    measured, loss = first_loss(dropout=0.3)
    assert loss != measured
    with engine(model_path, dropout=0.3) as whole:
        losses = [whole.update(batch, objective)["loss"] for _ in range(2)]
    assert losses[0] == loss
    with engine(model_path, dropout=0.3) as begun:
        begun.update(batch, objective)
        begun.save(str(tmp_path))
    with engine(model_path, dropout=0.3) as resumed:
        resumed.load(str(tmp_path))
        assert resumed.update(batch, objective)["loss"] == losses[1]


def test_a_saved_model_has_the_dropout_of_its_checkpoint(model_path: str, tmp_path: Path) -> None:
    with engine(model_path) as built:
        built.save(str(tmp_path), trainer_state=False)
        assert {getattr(built.model.config, name) for name in FIELDS} == {0.0}
    saved = AutoConfig.from_pretrained(tmp_path)
    assert {getattr(saved, name) for name in FIELDS} == {0.1}


def test_with_dropout_a_model_keeps_its_own_attention_which_has_some(tmp_path: Path) -> None:
    path = write_weights(SMALL, tmp_path)
    batch = Batch.from_groups(ragged())
    with engine(path) as packed, engine(path, dropout=0.2) as own:
        assert (packed.branches, own.branches) == (True, False)
        torch.testing.assert_close(own.outputs(batch), packed.outputs(batch), atol=1e-5, rtol=0)
    model = load_model(path, "fp32", dropout=0.2)
    assert model.model.layers[0].self_attn.attention_dropout == 0.2


@pytest.mark.parametrize("recipe", [GRPOConfig, PPOConfig, DPOConfig, RewardModelTrainingConfig])
def test_only_sft_takes_dropout(recipe: type) -> None:
    section = "policy" if issubclass(recipe, GRPOConfig) else "engine"
    with pytest.raises(ConfigError, match=r"lora\.dropout \(0\.1\) must be 0"):
        load_config(recipe, [f"{section}={{lora: {{dropout: 0.1}}}}"])
    with pytest.raises(ConfigError, match="dropout: unknown key"):
        load_config(recipe, [f"{section}={{dropout: 0.1}}"])
    assert load_config(SFTConfig, ["engine={dropout: 0.1}"]).engine.dropouts == {"dropout": 0.1}
