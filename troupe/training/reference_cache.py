"""Log-probabilities of a frozen reference, computed once and kept in a file: by sample, model and tokenizer.

The file is one safetensors file, written whole. A file of another model or tokenizer, or one whose samples have other
tokens, is refused: numbers of another reference would train towards it without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from troupe.algorithms.packing import Batch
from troupe.errors import CheckpointError
from troupe.records import Group

GROUPS_PER_READ = 64


class ReferenceCache:
    """Per-token log-probabilities of groups, found by the sample's id."""

    def __init__(self, path: Path, *, model: str, tokenizer: str) -> None:
        """Open the cache of these fingerprints. Raises CheckpointError for a file of others, or of something else."""
        self.path = path
        self._identity = {"model": model, "tokenizer": tokenizer}
        self._logprobs: dict[str, torch.Tensor] = {}
        self._digests: dict[str, str] = {}
        if path.is_file():
            try:
                self._read()
            except SafetensorError as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error}); remove it, or name another reference_cache"
                ) from None

    def _read(self) -> None:
        with safe_open(self.path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("troupe", "{}"))
            found = {name: metadata.get(name) for name in self._identity}
            if found != self._identity:
                raise CheckpointError(
                    f"{self.path} holds log-probabilities of {found}, this run's reference is {self._identity}; remove "
                    "it, or name another reference_cache"
                )
            flat, start = file.get_tensor("logprobs"), 0
        for sample_id, digest, count in metadata["samples"]:
            self._logprobs[sample_id], self._digests[sample_id] = flat[start : start + count], digest
            start += count

    def fill(self, groups: Sequence[Group], read: Callable[[Batch], torch.Tensor]) -> int:
        """Compute what is missing with `read` (batch -> [N]) and write the file; how many groups were computed."""
        missing = [group for group in groups if group.sample.sample_id not in self._logprobs]
        for start in range(0, len(missing), GROUPS_PER_READ):
            part = missing[start : start + GROUPS_PER_READ]
            values = read(Batch.from_groups(part))
            lengths = [sum(len(branch.token_ids) for branch in group.branches) for group in part]
            for group, logprobs in zip(part, values.split(lengths), strict=True):
                self._logprobs[group.sample.sample_id] = logprobs
                self._digests[group.sample.sample_id] = _digest(group)
        if missing:
            self._write()
        return len(missing)

    def _write(self) -> None:
        samples = [[sample_id, self._digests[sample_id], len(values)] for sample_id, values in self._logprobs.items()]
        metadata = {"troupe": json.dumps({**self._identity, "samples": samples})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        save_file({"logprobs": torch.cat(list(self._logprobs.values()))}, temporary, metadata)
        os.replace(temporary, self.path)

    def logprobs(self, groups: Sequence[Group]) -> torch.Tensor:
        """Return [N]: the log-probabilities of the groups' branch tokens, in the order of their batch."""
        for group in groups:
            name = group.sample.sample_id
            found, wanted = self._digests[name], _digest(group)
            if found != wanted:
                raise CheckpointError(
                    f"{self.path} has log-probabilities of other answers for {name} ({found} in the file, {wanted} "
                    "now; the data or max_length changed); remove it, or name another reference_cache"
                )
        return torch.cat([self._logprobs[group.sample.sample_id] for group in groups])


def _digest(group: Group) -> str:
    tokens = [list(group.prompt_ids), *(list(branch.token_ids) for branch in group.branches)]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]
