"""Whatever the architecture: the log-probabilities of a loaded model are those of its own forward pass, one sequence
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    MptConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
)

from tests.actors.small import random_group
from troupe.algorithms import forward_paths
from troupe.algorithms.forward_paths import own_logprobs, small_config
from troupe.algorithms.hidden import forget_lengths
from troupe.algorithms.loading import load_model
from troupe.algorithms.logprobs import PackedModel
from troupe.algorithms.packing import Batch, pack
from troupe.errors import CheckpointError
from troupe.records import Group

VOCAB = 96
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON = {name: value for name, value in SIZES.items() if name not in ("intermediate_size", "num_key_value_heads")}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0 + index for index in range(8)],
    "original_max_position_embeddings": 16,
}
ARCHITECTURES: dict[str, tuple[PreTrainedConfig, str]] = {
    "plain": (LlamaConfig(**SIZES), "packed branches, troupe_packed attention"),
    "a window": (MistralConfig(**SIZES, sliding_window=8), "padded rows"),
    "learned positions": (GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=64), "padded rows"),
    "experts": (MixtralConfig(**SIZES, num_local_experts=4), "padded rows"),
    "scaled logits": (CohereConfig(**SIZES, logit_scale=0.25), "padded rows"),
    "a state": (MambaConfig(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2), "padded rows"),
    "alibi without scaled logits": (MptConfig(vocab_size=VOCAB, d_model=64, n_layers=2, n_heads=4), "padded rows"),
    # transformers' sdpa leaves both biases out of the scores.
    "capped scores": (Gemma2Config(**SIZES, head_dim=16), "padded rows, eager attention"),
    "alibi": (FalconConfig(**FALCON, alibi=True), "padded rows, eager attention"),
    # Their logits come through more than the head and the scales that we know.
    "capped logits": (RecurrentGemmaConfig(**{**SIZES, "num_hidden_layers": 3}), "padded rows, its own logits"),
    "a deep head": (ModernBertDecoderConfig(**SIZES), "padded rows, its own logits"),
    "rope of the longest sequence seen": (
        LlamaConfig(**{**SIZES, "max_position_embeddings": 16}, rope_parameters=DYNAMIC),
        "one sequence per pass",
    ),
    "rope of short and long": (
        Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=16),
        "one sequence per pass",
    ),
}


@pytest.fixture(autouse=True)
def _an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(forward_paths, "FORWARD_PATHS", tmp_path / "cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small are fastest so
    yield
    torch.set_num_threads(threads)


def written(config: PreTrainedConfig, directory: Path) -> str:
    """A model whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (2 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.3)
            )
    model.save_pretrained(directory)
    return str(directory)


def groups() -> list[Group]:
    """Sequences of 4 to 12 tokens, and of 23 to 40."""
    shapes = [(1, [5, 3]), (9, [1]), (20, [20, 3]), (8, [4, 4])]
    return [random_group(prompt, branches, vocab=VOCAB) for prompt, branches in shapes]


def logprobs(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    packed, values = PackedModel(model), torch.zeros(batch.num_tokens)
    for row in pack(batch, 64, branches=model.forward_path.branches):
        values = values.index_put((row.token_index,), packed(row)[0])
    return values


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_logprobs_of_a_loaded_model_are_its_own(name: str, tmp_path: Path) -> None:
    config, way = ARCHITECTURES[name]
    path = written(config, tmp_path / "model")
    model = load_model(path, "fp32").eval()
    assert str(model.forward_path) == way
    own = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        found = logprobs(model, Batch.from_groups(groups()))
    torch.testing.assert_close(found, own_logprobs(own, groups()), atol=3e-5, rtol=0)


def test_one_sequence_per_pass_has_the_gradient_of_its_own_forward(tmp_path: Path) -> None:
    path = written(ARCHITECTURES["rope of the longest sequence seen"][0], tmp_path / "model")
    model, own = load_model(path, "fp32").eval(), AutoModelForCausalLM.from_pretrained(path).eval()
    batch = Batch.from_groups(groups())
    logprobs(model, batch).sum().backward()
    for group in groups():
        for branch in group.branches:
            forget_lengths(own)
            ids = torch.tensor([[*group.prompt_ids, *branch.token_ids]])
            each = own(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
            each.gather(-1, torch.tensor(branch.token_ids)[:, None]).sum().backward()
    ours, theirs = (torch.cat([p.grad.flatten() for p in one.parameters()]) for one in (model, own))
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_a_length_dependent_rope_is_padded_as_long_as_it_does_not_depend_on_it(tmp_path: Path) -> None:
    model = load_model(written(ARCHITECTURES["rope of short and long"][0], tmp_path / "model"), "fp32").eval()
    passes: list[int] = []
    model.model.register_forward_hook(lambda module, inputs, output: passes.append(1))
    logprobs(model, Batch.from_groups([random_group(8, [8, 1, 4], vocab=VOCAB)]))
    assert len(passes) == 1, "three sequences of at most 16 tokens"
    logprobs(model, Batch.from_groups([random_group(8, [9, 1, 4], vocab=VOCAB)]))
    assert len(passes) == 1 + 3


def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    settings = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    path = written(BertConfig(**settings), tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"\(bert\) sees later tokens, so it is no causal language model"):
        load_model(path, "fp32")


def test_what_was_found_out_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = forward_paths.forward_path(FalconConfig(**FALCON, alibi=True))
    monkeypatch.setattr(forward_paths, "_tried", None)
    assert forward_paths.forward_path(FalconConfig(**FALCON, alibi=True)) == first


def test_the_layers_that_are_tried_show_every_kind_and_none_is_dear() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    config = MistralConfig(
        num_hidden_layers=32, layer_types=kinds * 8, vocab_size=131072, hidden_size=8192, intermediate_size=28672
    )
    small = small_config(config)
    assert (small.num_hidden_layers, small.layer_types) == (4, kinds)
    assert (small.vocab_size, small.hidden_size, small.intermediate_size) == (128, 8192 // 8, 64)
    assert (small.num_attention_heads, small.num_key_value_heads) == (4, 1)
