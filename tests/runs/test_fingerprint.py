"""Fingerprints: the same for the same weights and tokenizer wherever they lie, another one for any others."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from troupe.runs.checkpoint import CheckpointStore
from troupe.runs.fingerprint import tokenizer_fingerprint, weights_fingerprint
from troupe.training.scratch import train_tokenizer


def write_weights(directory: Path, value: float = 1.0, name: str = "model.safetensors") -> str:
    directory.mkdir(exist_ok=True)
    save_file({"weight": torch.full((3,), value)}, directory / name)
    return str(directory)


def test_equal_weights_have_one_fingerprint_and_a_last_bit_makes_another(tmp_path: Path) -> None:
    first = weights_fingerprint(write_weights(tmp_path / "a"))
    assert weights_fingerprint(write_weights(tmp_path / "b")) == first
    assert weights_fingerprint(write_weights(tmp_path / "c", 1.0 + 2**-23)) != first
    # A second shard belongs to the weights; what lies beside them does not.
    (tmp_path / "a" / "notes.txt").write_text("trained on a Tuesday")
    assert weights_fingerprint(str(tmp_path / "a")) == first
    assert weights_fingerprint(write_weights(tmp_path / "a", name="model-2.safetensors")) != first


def test_a_checkpoint_and_a_copy_of_its_weights_have_the_same_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    with store.writing(3) as path:
        write_weights(path)
    (tmp_path / "copy").mkdir()
    shutil.copy(store.path(3) / "model.safetensors", tmp_path / "copy")
    assert weights_fingerprint(str(store.path(3))) == weights_fingerprint(str(tmp_path / "copy"))


def test_weights_of_the_older_format_are_told_apart_too(tmp_path: Path) -> None:
    prints = set()
    for value in (1.0, 2.0):
        directory = tmp_path / str(value)
        directory.mkdir()
        torch.save({"weight": torch.full((3,), value)}, directory / "pytorch_model.bin")
        prints.add(weights_fingerprint(str(directory)))
    assert len(prints) == 2


def test_a_hub_name_stands_for_itself() -> None:
    assert weights_fingerprint("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


def test_whatever_changes_token_ids_changes_the_tokenizers_fingerprint() -> None:
    texts = ["the colour of the sea", "the colour of the sky"]
    first = tokenizer_fingerprint(train_tokenizer(texts, 290, 64))
    assert tokenizer_fingerprint(train_tokenizer(texts, 290, 128)) == first  # a length limit changes no id
    assert tokenizer_fingerprint(train_tokenizer(texts, 270, 64)) != first
    other = train_tokenizer(texts, 290, 64)
    other.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(other) != first
    other = train_tokenizer(texts, 290, 64)
    other.eos_token = "<pad>"
    assert tokenizer_fingerprint(other) != first
