"""What is made once of a model in another form: a directory of the cache, under the digest of what it was made from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from troupe.disk import made_once
from troupe.files import read_json, sha256_of, write_atomically
from troupe.processes.waiting import waiting
from troupe.project import CACHE

log = logging.getLogger(__name__)

MODELS = CACHE / "models"
FORM = "1"
"""Part of every digest; another number where a conversion writes something else than before."""


def once(target: Path, write: Callable[[Path], None], title: str) -> str:
    """Return `target`, a model's directory; where it is not there yet, `write` makes it."""
    if not (target / "config.json").is_file():
        log.info("%s is converted once, into %s", title, target)
        with waiting(f"{title} is converted"), made_once(target, "the converted model") as building:
            write(building)
    return str(target)


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, remembered by its place, size and time: reading 15 GB takes half a minute."""
    facts = file.stat()
    seen = f"{file.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}"
    note = MODELS / f".digest-{hashlib.sha256(seen.encode()).hexdigest()[:16]}.json"
    known = read_json(note)
    if isinstance(known, str):
        return known
    found = sha256_of(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, f'"{found}"')
    return found
