"""What a file of computed numbers belongs to: short hashes of the weights and the tokenizer behind it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from troupe.files import sha256_of
from troupe.runs.checkpoint import read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def weights_fingerprint(model_path: str) -> str:
    """Return a hash of the weights of a model directory; a hub name stands for itself.

    A checkpoint of ours names its files' hashes in its manifest; other directories are read.
    """
    directory = Path(model_path)
    if not directory.is_dir():
        return model_path
    named = (read_manifest(directory) or {"files": {}})["files"]
    digest = hashlib.sha256()
    for file in sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")]):
        known = named.get(file.name, {}).get("sha256")
        digest.update(f"{file.name}\0{known or sha256_of(file)}\0".encode())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that turns a conversation into token ids: vocabulary, end of turn, chat template."""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
