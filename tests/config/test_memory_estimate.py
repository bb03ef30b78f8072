"""The memory that a recipe takes, with every number derived by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.loader import load_config
from troupe.config.memory_estimate import PUBLISHED, Shape, memory_lines, shape_of, state_bytes, working_bytes
from troupe.config.models import LoraConfig, PolicyConfig
from troupe.config.supervised import SFTConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = Shape(width=4, layers=2, heads=2, kv_heads=1, head_size=2, mlp_width=8, vocab_size=10, tied=True)
"""A layer: query and output 16 each, key and value 8 each, three maps of the MLP 32 each: 144. Embedding 40. All:
328.
"""


def test_parameters_and_cache_follow_from_the_shape() -> None:
    assert (SMALL.layer_parameters, SMALL.embedding, SMALL.parameters) == (144, 40, 2 * 144 + 40)
    assert SMALL.cache_bytes() == 2 * 2 * 1 * 2 * 2  # key and value, 2 layers, 1 head of 2, 2 bytes each


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen2.5-0.5B", 0.49e9),
        ("Qwen/Qwen2.5-3B-Instruct", 3.09e9),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7.62e9),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03e9),
    ],
)
def test_published_models_have_the_parameters_of_their_cards(name: str, published: float) -> None:
    assert PUBLISHED[name].parameters == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Weights 2, the row's gradients 2 and their fp32 sum 4, masters and moments 12.
        ({"zero_stage": 0}, 328 * 20),
        ({"zero_stage": 1}, 328 * (8 + 12 / 2)),
        ({"zero_stage": 2}, 328 * (2 + 16 / 2)),
        ({"zero_stage": 3}, 328 * 18 / 2),
        ({"zero_stage": 3, "precision": "fp32"}, 328 * 16 / 2),
        ({"zero_stage": 1, "precision": "fp32"}, 328 * (8 + 8 / 2)),
        ({"zero_stage": 3, "offload": "optimizer"}, 328 * 6 / 2),
        ({"zero_stage": 3, "offload": "optimizer_and_parameters"}, 328 * 4 / 2),
        # Rank 1: query and output 8 parameters each, key and value 6 each, the MLP's three 12 each: 64 a layer.
        ({"zero_stage": 0, "lora": LoraConfig(rank=1)}, 328 * 2 + 2 * 64 * 20),
    ],
)
def test_state_is_what_zero_leaves_on_a_rank(settings: dict, expected: float) -> None:
    assert state_bytes(SMALL, PolicyConfig(num_ranks=2, **settings)) == expected


def test_a_row_takes_activations_logits_and_under_zero_3_a_gathered_module() -> None:
    row = {"row_tokens": 16, "zero_stage": 0}
    logits = 4 * 16 * 10  # bf16, and their gradient
    assert working_bytes(SMALL, PolicyConfig(**row)) == 2 * 34 * 16 * 4 + logits
    assert working_bytes(SMALL, PolicyConfig(**row, gradient_checkpointing=True)) == (2 * 2 + 34) * 16 * 4 + logits
    assert working_bytes(SMALL, PolicyConfig(**row, logits_chunk=50)) == 2 * 34 * 16 * 4 + 4 * 50
    gathered = working_bytes(SMALL, PolicyConfig(row_tokens=16)) - working_bytes(SMALL, PolicyConfig(**row))
    assert gathered == 2 * 144


def test_a_shape_is_read_from_a_directory(tmp_path: Path) -> None:
    found = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    found |= {"intermediate_size": 8, "vocab_size": 10, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(found))
    assert shape_of(str(tmp_path)) == SMALL
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 4}))
    assert shape_of(str(tmp_path)) is None


def test_a_dry_run_of_eight_h100_says_what_each_role_takes() -> None:
    config = load_config(GRPOConfig, [str(ROOT / "configs/gsm8k_8xh100_colocated.yaml")])
    # 3.086e9 parameters: 18 / 8 bytes each; cache: 36 layers x 2 x 2 heads x 128 x 2 bytes = 36 KiB a token.
    assert memory_lines(config) == [
        "memory of each GPU, about, with 3.09e9 parameters:",
        "  policy on 8: 6.9 GB of weights, gradients and optimizer, 3.5 GB while it learns",
        "  generator on 8: 40.0 of 80 GB; 6.2 GB of weights, 7.2 GB of KV cache when 128 answers are 1,536 tokens long",
    ]
    assert memory_lines(load_config(GRPOConfig, [])) == []
    unknown = load_config(GRPOConfig, ["model={type: pretrained, path: a/b}"])
    assert memory_lines(unknown) == ["memory: not estimated, the shape of a/b is not known here"]


SHAPE = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE |= {"intermediate_size": 8, "vocab_size": 10, "tie_word_embeddings": True}


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A directory with the shape of `SMALL`."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], None),
        (["algorithm.kl.coef=0.1"], "  reference on 1: 0.0 GB of weights"),
        (["algorithm.kl.coef=0.1", "reference.num_ranks=2"], "  reference on 2: 0.0 GB of weights"),
        (
            ["algorithm.kl.coef=0.1", "reference.source=shared_trunk", "policy.frozen_layers=0.5"],
            "  reference in the policy's 1: 0.0 GB of weights",
        ),
        (["algorithm.kl.coef=0.1", "reference.source=adapter_off", "policy.lora.rank=2"], None),
    ],
)
def test_a_reference_takes_memory_where_it_has_weights_of_its_own(
    arguments: list[str], line: str | None, small: str
) -> None:
    lines = memory_lines(load_config(GRPOConfig, [f"model.path={small}", *arguments]))
    assert [one for one in lines if "reference" in one] == ([] if line is None else [line])


def test_the_cache_is_of_the_answers_that_an_engine_has_at_once(small: str) -> None:
    """512 branches over 2 engines are 256 each, of which 100 may run; 256 + 40 tokens is the longest."""
    arguments = ["generator.num_engines=2", "generator.max_running=100"]
    (line,) = [one for one in memory_lines(load_config(GRPOConfig, [f"model.path={small}", *arguments])) if "KV" in one]
    assert line.startswith("  generator on 2: 68.0 of 80 GB; ")  # 0.85 of it
    assert line.endswith("when 100 answers are 296 tokens long")
    (line,) = [one for one in memory_lines(load_config(GRPOConfig, [f"model.path={small}"])) if "KV" in one]
    assert line.endswith("when 256 answers are 296 tokens long")


def test_every_trained_role_has_a_line(small: str) -> None:
    ppo = memory_lines(load_config(PPOConfig, [f"model.path={small}", "critic.num_ranks=2"]))
    assert [line.split(":")[0].strip() for line in ppo[1:3]] == ["policy on 1", "critic on 2"]
    sft = memory_lines(load_config(SFTConfig, [f"model.path={small}"]))
    assert [line.split(":")[0].strip() for line in sft] == [
        "memory of each GPU, about, with 0.00e9 parameters",
        "engine on 1",
    ]


def test_heads_may_be_as_many_as_keys_and_wider_than_their_share(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in SHAPE.items() if name != "num_key_value_heads"} | {"head_dim": 3})
    )
    shape = shape_of(str(tmp_path))
    assert shape is not None
    assert (shape.kv_heads, shape.head_size) == (2, 3)
    # Query, key, value: 4 x 6 each; output 6 x 4; the MLP 3 x 32.
    assert shape.layer_parameters == 4 * 24 + 96


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_more_ranks_under_zero_3_share_the_state_evenly(ranks: int) -> None:
    alone = state_bytes(SMALL, PolicyConfig(num_ranks=1))
    assert state_bytes(SMALL, PolicyConfig(num_ranks=ranks)) * ranks == alone
