"""What is saved and published of a model with an adapter is what peft itself would merge, under the names of
checkpoints.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
)

from tests.actors.small import write_weights
from troupe.actors.adapters import adapted_layers, check_adapter, merged, published, with_adapter
from troupe.actors.engine import Engine
from troupe.actors.weight_sync import ZeroSource
from troupe.config.models import LoraConfig, PolicyConfig
from troupe.errors import ConfigError

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA = LlamaConfig(**SIZES, tie_word_embeddings=False)
TIED = Qwen2Config(**SIZES, tie_word_embeddings=True)
GPT2 = GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
MIXTRAL = MixtralConfig(**SIZES, num_local_experts=4)
CASES: dict[str, tuple[PreTrainedConfig, Any]] = {
    "linear layers": (LLAMA, "all-linear"),
    "the embedding": (LLAMA, ["embed_tokens", "q_proj"]),
    "a head of its own": (LLAMA, ["lm_head", "v_proj"]),
    "beside a tied head": (TIED, ["q_proj", "down_proj"]),
    "GPT-2's Conv1D": (GPT2, "all-linear"),
    "GPT-2's Conv1D, square": (GPT2, ["c_proj"]),
    "experts": (MIXTRAL, "all-linear"),
    "a router": (MIXTRAL, ["gate"]),
    "experts of another family": (Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=32), "all-linear"),
}


def randomise(model: PreTrainedModel) -> None:
    """Adapters start at zero, where everything would merge alike."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.2)


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_those_that_peft_merges(case: str) -> None:
    config, modules = CASES[case]
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config)
    before = {name: parameter.clone() for name, parameter in plain.named_parameters()}
    adapted = with_adapter(copy.deepcopy(plain), LoraConfig(rank=4, alpha=6, target_modules=modules), "vocabulary")
    randomise(adapted)
    layers = adapted_layers(adapted)
    ours = {name: merged(parameter, layers.get(name)) for name, parameter in published(adapted).items()}
    theirs = dict(adapted.merge_and_unload().named_parameters())
    assert ours.keys() == theirs.keys() == before.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name].detach(), atol=1e-6, rtol=0)
    assert {name for name in ours if not torch.equal(ours[name], before[name])} == set(layers)


@pytest.mark.parametrize(
    ("config", "modules", "sentence"),
    [
        (TIED, ["lm_head"], r"name lm_head, whose weight the embedding and the output head share"),
        (TIED, ["embed_tokens"], r"name model.embed_tokens, whose weight the embedding and the output head share"),
        (LLAMA, ["q_prj"], r"\['q_prj'\] do not fit a LlamaForCausalLM: Target modules .* not found"),
        (MIXTRAL, ["experts"], r"\['experts'\] do not fit a MixtralForCausalLM: Target module MixtralExperts"),
    ],
)
def test_modules_whose_adapter_cannot_be_published_are_refused_before_a_weight_is_read(
    tmp_path: Path, config: PreTrainedConfig, modules: list[str], sentence: str
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=sentence) as refused:
        check_adapter(str(tmp_path), LoraConfig(target_modules=modules), "vocabulary")
    assert "\n" not in str(refused.value)
    check_adapter(str(tmp_path), LoraConfig(), "vocabulary")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("case", ["linear layers", "the embedding", "GPT-2's Conv1D", "experts", "no adapter"])
def test_what_is_saved_loads_whole_and_what_is_sent_has_its_names(tmp_path: Path, case: str, zero_stage: int) -> None:
    config, modules = CASES.get(case, (MIXTRAL, None))
    lora = None if modules is None else LoraConfig(rank=4, alpha=6, target_modules=modules)
    path = write_weights(config, tmp_path / "model")
    settings = PolicyConfig(precision="fp32", zero_stage=zero_stage, lora=lora)
    engine = Engine(path, settings, total_steps=1)
    try:
        sent = {
            name: tensor.clone()
            for names, tensors in ZeroSource(engine).iter_groups()
            for name, tensor in zip(names, tensors, strict=True)
        }
        described = {meta.name: meta.shape for meta in ZeroSource(engine).metadata()}
        engine.save(str(tmp_path / "saved"), trainer_state=False)
    finally:
        engine.engine.destroy()
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info[each] for each in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert sent.keys() == saved.keys() == load_file(tmp_path / "model" / "model.safetensors").keys()
    assert described == {name: tuple(tensor.shape) for name, tensor in saved.items()}
    assert all(torch.equal(sent[name], saved[name]) for name in saved)
    if config is MIXTRAL:
        assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in saved
