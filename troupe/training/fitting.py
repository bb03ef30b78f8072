"""Whether a given model takes its adapter, and how it is run: remembered, for to find out imports torch and takes
seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from troupe.config.models import LoraConfig
from troupe.files import read_json, write_atomically
from troupe.project import CACHE
from troupe.runs.model_check import model_settings

if TYPE_CHECKING:
    from troupe.algorithms.loading import Head

log = logging.getLogger(__name__)

FITS = CACHE / "fits"
PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The way to run a model that gives its own log-probabilities."""

    way: str
    """`packed branches, ...`, in words."""
    slow: bool
    """Whether a faster way gives other log-probabilities."""
    alone: bool
    """Whether each sequence gets a pass of its own..."""
    reach: int | None
    """...where it has more tokens than this; None: always."""


def fit_of(path: str, head: Head, lora: LoraConfig | None, *, trust_remote_code: bool = False) -> Fit:
    """Return how the model at a directory or hub name is run. Raises ConfigError where it does not take the adapter,
    and CheckpointError where no way gives its own log-probabilities.
    """
    file = FITS / f"{_key(path, head, lora)}.json"
    known = None if trust_remote_code else read_json(file)  # code of its own may change beside the same config
    if known is not None:
        fit = Fit(**known)
        if fit.slow:
            log.warning("%s is run as %s, which is slower: other ways give other log-probabilities", path, fit.way)
        return fit
    fit = _found(path, head, lora, trust_remote_code)
    with contextlib.suppress(OSError):  # a machine that keeps nothing finds out again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(fit)))
    return fit


def _found(path: str, head: Head, lora: LoraConfig | None, trust_remote_code: bool) -> Fit:
    from troupe.actors.adapters import check_adapter
    from troupe.algorithms.forward_paths import forward_path_at

    if lora is not None:
        check_adapter(path, lora, head, trust_remote_code=trust_remote_code)
    way, reach = forward_path_at(path, trust_remote_code=trust_remote_code)
    return Fit(way=str(way), slow=way.alone or way.own_logits, alone=way.alone, reach=reach)


def _key(path: str, head: Head, lora: LoraConfig | None) -> str:
    """Return a hash of all that the answer depends on: the model's config, the adapter, the libraries, our own code."""
    code = [file.read_text() for file in sorted((PACKAGE / "algorithms").glob("*.py"))]
    code.append((PACKAGE / "actors" / "adapters.py").read_text())
    adapter = None if lora is None else lora.model_dump()
    facts = [model_settings(path), head, adapter, [version(library) for library in LIBRARIES], code]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
