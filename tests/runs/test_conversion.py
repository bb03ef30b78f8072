"""A GGUF file and a LoRA directory become, once, a directory that is the same model; or are refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from tests.actors.small import write_model
from troupe.errors import TroupeError
from troupe.runs.conversion import digest_of
from troupe.runs.model_check import check_model
from troupe.runs.model_paths import SMOLLM2, locate
from troupe.training.scratch import SPECIAL_TOKENS, train_bpe

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
SAME_IDS = torch.arange(4, 24)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in ("conversion", "gguf_files", "adapter_merge"):
        monkeypatch.setattr(f"troupe.runs.{module}.MODELS", tmp_path / "cache")
    return tmp_path / "cache"


def refusal(model: Path | str) -> str:
    with pytest.raises(TroupeError) as refused:
        check_model(str(model))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=SAME_IDS).logits


def test_a_digest_is_remembered_until_the_file_changes_and_a_broken_note_is_no_digest(tmp_path, cache):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = digest_of(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    (note,) = cache.glob(".digest-*.json")
    note.write_text('"remembered"')
    assert digest_of(file) == "remembered"
    note.write_text("{")
    assert digest_of(file) == first
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert digest_of(file) == hashlib.sha256(b"two").hexdigest()


# -- GGUF -------------------------------------------------------------------------------------------------------------

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
"""Names of a Qwen2 model in transformers, and in llama.cpp."""


def random_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def write_gguf(
    file: Path,
    model: Qwen2ForCausalLM,
    *,
    arch: str = "qwen2",
    scaling: str | None = None,
    without: str = "none",
    extra: bool = False,
) -> None:
    writer, config = gguf.GGUFWriter(file, arch), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    tokens = json.loads(train_bpe(["one text", "two texts"] * 9, config.vocab_size).to_str())["model"]
    by_id = sorted(tokens["vocab"], key=tokens["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    by_id += ["<|endoftext|>"]  # which transformers adds to any vocabulary of a Qwen2
    by_id += [f"[{number}]" for number in range(len(by_id), config.vocab_size)]
    writer.add_token_list(by_id)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in by_id])
    writer.add_token_merges([" ".join(pair) for pair in tokens["merges"]])
    writer.add_eos_token_id(3)
    writer.add_pad_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, parameter in model.named_parameters():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if without not in name:
            writer.add_tensor(name, parameter.detach().numpy())
    if extra:
        writer.add_tensor("blk.0.gate.weight", model.lm_head.weight.detach().numpy()[:2, :5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_its_model_with_template_ends_and_splits_and_only_once(tmp_path):
    file, model = tmp_path / "Tiny.gguf", random_model()
    write_gguf(file, model)
    directory = Path(locate(str(file)))
    assert check_model(str(file), longest=(128, "max_length"), sampled=True, scalar=False) == str(directory)
    read = AutoModelForCausalLM.from_pretrained(directory)
    assert torch.equal(logits(read), logits(model)), "fp32 weights stay fp32"
    assert read.dtype == torch.float32
    assert (read.generation_config.eos_token_id, read.generation_config.pad_token_id) == (3, 1)
    assert not hasattr(read.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<pad>")
    assert tokenizer.tokenize("a  12") == ["a", "Ġ", "Ġ", "1", "2"], "digits apart, as the vocabulary was trained"
    before = (directory / "model.safetensors").stat().st_mtime_ns
    copy = tmp_path / "again" / file.name
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    assert locate(str(copy)) == str(directory), "by its content, not by its place"
    assert (directory / "model.safetensors").stat().st_mtime_ns == before


def test_a_gguf_file_that_cannot_be_read_rightly_is_refused_by_its_cause(tmp_path, cache):
    assert "there is no file" in refusal(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    assert "text.gguf is no whole GGUF file that transformers reads" in refusal(tmp_path / "text.gguf")
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, random_model())
    for name, kept in (("head", 2000), ("tensors", whole.stat().st_size - 1)):
        cut = tmp_path / f"{name}.gguf"
        cut.write_bytes(whole.read_bytes()[:kept])
        assert "copy or download it again" in refusal(cut)
    write_gguf(tmp_path / "other.gguf", random_model(), arch="mpt")
    assert "transformers does not read off a GGUF file (GGUF model with architecture mpt" in refusal(
        tmp_path / "other.gguf"
    )
    write_gguf(tmp_path / "far.gguf", random_model(), scaling="yarn")
    assert "stretches its rotary embedding (qwen2, scaling yarn)" in refusal(tmp_path / "far.gguf")
    write_gguf(tmp_path / "less.gguf", random_model(), without="ffn_up")
    assert "Qwen2ForCausalLM differ: 2 tensors are not in the file" in refusal(tmp_path / "less.gguf")
    write_gguf(tmp_path / "more.gguf", random_model(), extra=True)
    assert "it holds 10 numbers more than the model" in refusal(tmp_path / "more.gguf")
    assert not [path for path in cache.iterdir() if path.is_dir()], "nothing half-made stays"


def test_a_model_that_make_smollm2_has_not_fetched_yet_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "`make smollm2` makes it" in refusal(str(SMOLLM2))


# -- adapters ---------------------------------------------------------------------------------------------------------


def write_adapter(directory: Path, base: str, *, modules: tuple[str, ...] = ("q_proj", "down_proj")) -> Any:
    """Write a LoRA whose matrices all matter; returns the model on its base."""
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(modules), task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(directory)
    return model.eval()


def test_a_lora_directory_is_the_model_that_it_makes_of_its_base_and_merged_only_once(tmp_path):
    base = write_model(tmp_path / "base", tied=True)
    adapted = write_adapter(tmp_path / "adapter", base)
    directory = locate(str(tmp_path / "adapter"))
    assert check_model(str(tmp_path / "adapter"), sampled=True, scalar=False) == directory
    read = AutoModelForCausalLM.from_pretrained(directory).eval()
    gap = (logits(read) - logits(adapted)).abs().max()
    assert gap < 1e-5 < (logits(read) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max()
    assert AutoTokenizer.from_pretrained(directory).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    write_adapter(tmp_path / "other", base, modules=("v_proj",))
    assert locate(str(tmp_path / "other")) != directory
    (tmp_path / "base" / "model.safetensors").touch()
    os.utime(tmp_path / "base" / "model.safetensors", (1, 1))
    assert locate(str(tmp_path / "adapter")) != directory, "another base is another model"


def test_an_adapter_without_its_base_or_that_cannot_be_merged_is_refused_by_its_cause(tmp_path):
    base = write_model(tmp_path / "base", tied=True)
    write_adapter(tmp_path / "head", base, modules=("lm_head",))
    assert "cannot be merged into" in refusal(tmp_path / "head")
    write_adapter(tmp_path / "adapter", base)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for named, told in (
        (str(tmp_path / "gone"), "gone, which cannot be used: there is no model at"),
        (None, "an adapter that names no base model; put the base there"),
    ):
        write(tmp_path / "adapter", settings | {"base_model_name_or_path": named})
        assert told in refusal(tmp_path / "adapter")
    write(tmp_path / "adapter", settings | {"peft_type": "IA3"})
    assert "holds a IA3 adapter, which cannot be merged here" in refusal(tmp_path / "adapter")
    write(tmp_path / "adapter", settings)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert "is no whole adapter" in refusal(tmp_path / "adapter")


def write(adapter: Path, settings: dict[str, Any]) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
