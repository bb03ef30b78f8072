"""A model that cannot be used is refused from its files alone, with the cause in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.supervised import RewardModelTrainingConfig, SFTConfig
from troupe.errors import TroupeError
from troupe.runs.model_check import check_model, check_models, longest_of

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4,
    "max_position_embeddings": 48,
}


def write_model(directory: Path, *, tokens: int = 4, **settings: Any) -> Path:
    directory.mkdir(parents=True)
    kept = {name: value for name, value in {**LLAMA, **settings}.items() if value is not None}
    write(directory / "config.json", kept)
    save_file({"model.embed_tokens.weight": torch.ones(4, 2)}, directory / "model.safetensors")
    added = [{"id": number, "content": f"<{number}>"} for number in range(4, tokens)]
    write(directory / "tokenizer.json", {"model": {"vocab": {"a": 0, "b": 1, "c": 2, "d": 3}}, "added_tokens": added})
    return directory


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(TroupeError) as refused:
        check_model(str(path), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_whole_model_is_accepted_and_its_directory_returned(tmp_path):
    model = write_model(tmp_path / "m")
    assert check_model(str(model), longest=(48, "max_length"), sampled=True, scalar=False) == str(model)


def test_a_config_that_names_no_known_architecture_is_refused(tmp_path):
    assert "has no model_type" in refusal(write_model(tmp_path / "none", model_type=None))
    assert "model_type 'lama', which the installed" in refusal(write_model(tmp_path / "typo", model_type="lama"))
    own = write_model(tmp_path / "own", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    assert "set trust_remote_code: true" in refusal(own)
    assert check_model(str(own), trust_remote_code=True)
    unknown = write_model(tmp_path / "vllm", architectures=["RwkvForCausalLM"], model_type="rwkv")
    assert "is a RwkvForCausalLM, which the installed vLLM does not know" in refusal(unknown, sampled=True)
    assert check_model(str(unknown)), "training alone needs no engine"


def test_damaged_and_missing_weights_are_named_by_file(tmp_path):
    model = write_model(tmp_path / "cut")
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-1])
    assert "model.safetensors is damaged or was not copied to its end" in refusal(model)
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "is a Git LFS pointer" in refusal(model)
    (model / "model.safetensors").unlink()
    assert "has no weights" in refusal(model)
    write(model / "model.safetensors.index.json", {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    (model / "one.safetensors").write_bytes(whole)
    assert "lacks 1 of the 2 files that its model.safetensors.index.json names, two.safetensors" in refusal(model)
    (model / "two.safetensors").write_bytes(whole)
    (model / "consolidated.safetensors").write_bytes(b"")  # another format's, which nobody reads
    assert check_model(str(model))


def test_a_model_without_tokenizer_is_refused_unless_it_needs_none(tmp_path):
    model = write_model(tmp_path / "m")
    (model / "tokenizer.json").unlink()
    assert "has no tokenizer; copy tokenizer.json" in refusal(model)
    write(model / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert "has no tokenizer" in refusal(model), "settings without a vocabulary"
    assert check_model(str(model), tokenizer=False)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(tmp_path):
    model = write_model(tmp_path / "m", tokens=7)
    assert "has embeddings for 4 tokens, and its tokenizer knows 3 more ('<4>', '<5>', '<6>')" in refusal(model)
    assert check_model(str(write_model(tmp_path / "rows", tokens=7, vocab_size=8)))
    padded = write_model(tmp_path / "padded", tokens=5)  # Llama 2 with a pad token, which no text has
    write(padded / "tokenizer_config.json", {"pad_token": {"content": "<4>"}})
    assert check_model(str(padded))


def test_a_hub_that_does_not_answer_is_the_cause(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as after its retries, which take 20 s
    assert "nobody/nothing cannot be read from the hub" in refusal("nobody/nothing")


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"max_position_embeddings": 48}, 48),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 40960, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 40960),
        ({"text_config": {"max_position_embeddings": 131072}}, 131072),
        ({"model_type": "mamba"}, None),
    ],
)
def test_the_longest_sequence_is_read_off_the_config(settings, length):
    assert longest_of(settings) == length


def test_every_training_recipe_asks_whether_its_sequences_fit(tmp_path):
    model = f"model={{type: pretrained, path: {write_model(tmp_path / 'm')}}}"

    def refused(recipe, *arguments):
        with pytest.raises(TroupeError) as error:
            check_models(load_config(recipe, [model, *arguments]))
        return str(error.value)

    limits = ["rollout.max_prompt_tokens=40", "rollout.max_response_tokens=9"]
    assert "rollout.max_prompt_tokens + max_response_tokens (49) must be at most what model.path" in refused(
        GRPOConfig, *limits
    )
    check_models(load_config(GRPOConfig, [model, limits[0], "rollout.max_response_tokens=8"]))
    for recipe in (SFTConfig, RewardModelTrainingConfig):
        assert "max_length (512) must be at most what model.path" in refused(recipe)
        check_models(load_config(recipe, [model, "max_length=48"]))


def test_a_mixture_whose_weights_cannot_reach_engines_is_refused_where_it_is_sampled(tmp_path):
    settings = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 8}
    model = f"model={{type: pretrained, path: {write_model(tmp_path / 'm', **settings)}}}"
    short = ["rollout.max_prompt_tokens=8", "rollout.max_response_tokens=8"]
    with pytest.raises(TroupeError, match=r"is a mixture of experts \(qwen3_moe\), and of these only mixtral"):
        check_models(load_config(GRPOConfig, [model, *short]))
    check_models(load_config(SFTConfig, [model, "max_length=16"]))
    settings = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8}
    mixtral = write_model(tmp_path / "mixtral", **settings)
    check_models(load_config(GRPOConfig, [f"model={{type: pretrained, path: {mixtral}}}", *short]))


def test_heads_are_checked_where_they_matter(tmp_path):
    scorer = write_model(tmp_path / "scorer", architectures=["LlamaForSequenceClassification"], id2label={"0": "x"})
    assert "is a reward model and writes no text" in refusal(scorer, scalar=False)
    assert check_model(str(scorer), scalar=True)
    assert "has no trained scalar head" in refusal(write_model(tmp_path / "writer"), scalar=True)
    shutil.rmtree(scorer)
    two = write_model(tmp_path / "scorer", architectures=["LlamaForSequenceClassification"])
    assert "has 2 labels" in refusal(two, scalar=True)
