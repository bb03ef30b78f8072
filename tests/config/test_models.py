"""Models, engines and devices: the chat settings that are read from files, dropout, and the bounds of an optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from troupe.config.grpo import CriticConfig, GRPOConfig, PPOConfig
from troupe.config.loader import Section, load_config
from troupe.config.models import (
    EngineConfig,
    LoraConfig,
    PolicyConfig,
    PretrainedModelConfig,
    ScratchModelConfig,
    SFTEngineConfig,
)
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig
from troupe.errors import ConfigError


def test_chat_settings_hold_the_text_of_the_template(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }} – ü", encoding="utf-8")
    settings = PretrainedModelConfig(
        path="x", chat="raw", chat_template=str(file), chat_template_kwargs={"deep": True}, system_turn="fold"
    ).chat_settings
    assert settings.template == "{{ messages[0].content }} – ü"
    assert (settings.chat, settings.template_kwargs, settings.system_turn) == ("raw", {"deep": True}, "fold")
    assert ScratchModelConfig().chat_settings.template is None


@pytest.mark.parametrize("kind", ["missing", "directory", "binary"])
def test_a_template_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    if kind == "directory":
        file.mkdir()
    if kind == "binary":
        file.write_bytes(b"\xff\xfe")
    with pytest.raises(
        ConfigError, match=r"chat_template .*mine\.jinja cannot be read \(.*\); name a file with a jinja"
    ):
        _ = PretrainedModelConfig(path="x", chat_template=str(file)).chat_settings


# -- dropout -----------------------------------------------------------------------------------------------------------


def test_dropout_is_what_is_above_0() -> None:
    assert PolicyConfig().dropouts == {}
    assert PolicyConfig(lora=LoraConfig(dropout=0.05)).dropouts == {"lora.dropout": 0.05}
    both = SFTEngineConfig(dropout=0.1, lora=LoraConfig(dropout=0.05))
    assert both.dropouts == {"lora.dropout": 0.05, "dropout": 0.1}


@pytest.mark.parametrize(
    ("config", "section"),
    [(GRPOConfig, "policy"), (PPOConfig, "critic"), (DPOConfig, "engine"), (RewardModelTrainingConfig, "engine")],
)
def test_only_sft_may_have_dropout(config: type[Section], section: str) -> None:
    with pytest.raises(ConfigError, match=r"lora.dropout \(0.1\) must be 0: outputs of two passes are compared here"):
        load_config(config, [f"{section}.lora.dropout=0.1"])
    assert load_config(SFTConfig, ["engine.lora.dropout=0.1"]).engine.dropouts == {"lora.dropout": 0.1}


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "given", "sentence"),
    [
        (PolicyConfig, {"betas": [0.9, 1.0]}, "less than 1"),
        (PolicyConfig, {"betas": [0.9]}, "required"),
        (PolicyConfig, {"betas": [0.9, 0.9, 0.9]}, "at most 2"),
        (PolicyConfig, {"frozen_layers": 1.0}, "less than 1"),  # nothing would learn
        (PolicyConfig, {"min_lr_ratio": 1.5}, "less than or equal to 1"),
        (PolicyConfig, {"row_tokens": 15}, "greater than or equal to 16"),
        (PolicyConfig, {"zero_stage": -1}, "greater than or equal to 0"),
        (PolicyConfig, {"learning_rate": 1.5}, "between 0 and 1"),
        (LoraConfig, {"rank": 0}, "greater than or equal to 1"),
        (LoraConfig, {"target_modules": "all"}, "all-linear"),
        (EngineConfig, {"memory_fraction": 0.0}, "greater than 0"),
        (EngineConfig, {"cpu_cache_gib": 0.0}, "greater than 0"),
        (ScratchModelConfig, {"hidden_size": 96}, "multiple of 64"),
        (ScratchModelConfig, {"vocab_size": 299}, "greater than or equal to 300"),
        (CriticConfig, {"value_clip": -1.0}, "greater than 0"),
    ],
)
def test_a_number_that_no_model_can_have_is_refused(section: type[Section], given: Any, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        section(**given)


def test_decay_rates_are_written_as_a_list_and_are_a_pair() -> None:
    assert load_config(GRPOConfig, ["policy.betas=[0.8, 0.95]"]).policy.betas == (0.8, 0.95)
    assert load_config(PPOConfig, ["critic.betas=[0, 0.5]"]).critic.betas == (0, 0.5)


def test_an_adapter_is_on_all_linear_maps_or_on_those_that_are_named() -> None:
    assert load_config(GRPOConfig, ["policy.lora={rank: 4}"]).policy.lora == LoraConfig(rank=4)
    named = load_config(GRPOConfig, ["policy.lora.target_modules=[q_proj, v_proj]"]).policy.lora
    assert named is not None
    assert named.target_modules == ["q_proj", "v_proj"]
    assert load_config(GRPOConfig, ["policy.lora.rank=4", "policy.lora=null"]).policy.lora is None
