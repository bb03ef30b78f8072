"""Split a file of rows, or a data set, into JSONL files that every job can read: no story, document or prompt in two of
them.

    python jobs/prepare_data.py file=stories.jsonl key=story_id output=data/stories
    python jobs/prepare_data.py data='{type: docstring_sections}' key=package output=data/sections
    tokenizer=runs/sft/checkpoints/best
    python jobs/prepare_data.py file=books.jsonl output=data/books 'sections.endpoint={base_url: ..., model: ...}'

With `sections` another model first writes summaries and character sheets of whole stories, for `type: next_chapter`.
What was left out and how long the texts are is printed and kept, with the hashes of inputs and outputs, in
manifest.json.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich
from omegaconf import OmegaConf
from rich.progress import track
from rich.table import Table

from troupe.config.program import run_program
from troupe.config.tools import PrepareConfig
from troupe.data import load_data
from troupe.data.lines import Row, write_rows
from troupe.data.splitting import Item, items_of_file, items_of_rows, items_of_samples, quantiles, rows_hash, split
from troupe.data.story_sections import Read, read_stories, story_rows
from troupe.errors import ConfigError, DataError, first_line
from troupe.files import now, read_json, sha256_of, to_json, write_atomically
from troupe.processes.waiting import waiting
from troupe.records import Message
from troupe.rewards.chat_endpoint import ChatEndpoint
from troupe.runs.run_directory import environment

MANIFEST = "manifest.json"
NAME_WORDS = 3
"""Fields with at most this many words are names and labels: in the manifest, and not in the table."""


def prepare(config: PrepareConfig) -> None:
    refuse_foreign_directory(config.path)
    tokenizer = load_tokenizer(config.tokenizer)
    items, dropped = read(config)
    origin = origin_of(config, items)
    refuse_another_origin(config.path, origin)
    parts = split(items, config.shares, seed=config.seed, key=config.split_key)
    statistics = {name: statistics_of(name, part, tokenizer) for name, part in parts.items()}

    for name, part in parts.items():
        write_rows(config.path / f"{name}.jsonl", (item.row for item in part))
    manifest = {
        **origin,
        "at": now(),
        "dropped": dict(dropped),
        "files": {f"{name}.jsonl": hashed(config.path / f"{name}.jsonl") for name in parts},
        "statistics": statistics,
        "load_with": load_with(config, parts),
        "environment": environment(),
    }
    write_atomically(config.path / MANIFEST, to_json(manifest, indent=2) + "\n")
    tell(config, manifest)


# -- reading -------------------------------------------------------------------------------------------------


def read(config: PrepareConfig) -> tuple[list[Item], Mapping[str, int]]:
    """Return (items, what was left out by reason)."""
    if config.data is None:
        dropped: Counter[str] = Counter()
        if config.sections is not None:
            items = items_of_rows(write_sections(config, dropped), config.split_key, config.filters, dropped)
        else:
            items = items_of_file(Path(str(config.file)), config.key, config.filters, dropped)
        if not items:
            raise DataError(f"{config.file}: the filters left out all rows, {dict(dropped)}; widen them")
        return items, dropped
    data = load_data(config.data)
    return items_of_samples(data, config.key), data.dropped


def write_sections(config: PrepareConfig, dropped: Counter[str]) -> list[tuple[str, Row]]:
    """Return (story's place, row) of every chapter to foresee, whose sections the endpoint's model writes.

    Raises DataError where some could not be had, after all others are in the cache; `dropped` counts stories that are
    too short.
    """
    settings, stories = config.sections, read_stories(Path(str(config.file)))
    assert settings is not None
    try:
        endpoint = ChatEndpoint(settings.endpoint)
    except ValueError as error:
        raise ConfigError(f"sections.endpoint: {error}") from None

    async def ask(prompt: str, read: Read) -> Any:
        return (await endpoint.ask([Message(role="user", content=prompt)], read)).value

    async def write_all() -> list[Any]:
        return await asyncio.gather(*(story_rows(each, settings, ask) for each in stories), return_exceptions=True)

    with waiting(f"{settings.endpoint.model} writes the sections of {len(stories)} stories"):
        written = asyncio.run(write_all())
    refused = next((one for one in written if isinstance(one, BaseException) and not isinstance(one, DataError)), None)
    if refused is not None:
        raise refused
    missing = [one for one in written if isinstance(one, DataError)]
    if missing:
        raise DataError(
            f"{missing[0]}, and sections of {len(missing)} of {len(stories)} stories are missing; what was written is "
            f"in {settings.endpoint.cache or 'no cache'}: call it again, with another model or shorter chapters where "
            "one is too long"
        )
    dropped["short_stories"] = sum(not rows for rows in written)
    return [(story.where, row) for story, rows in zip(stories, written, strict=True) for row in rows]


def load_tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ConfigError(f"tokenizer {name!r} cannot be loaded ({reason}); name a directory or a hub name") from None


def statistics_of(name: str, part: Sequence[Item], tokenizer: Any) -> dict[str, Any]:
    """Rows, keys, and for each text its quantiles in words and, with a tokenizer, in tokens."""
    units = ["words"] if tokenizer is None else ["words", "tokens"]
    lengths: dict[str, dict[str, list[int]]] = {}
    for item in track(part, description=f"measuring {name}", transient=True, disable=len(part) < 1000):
        for field, text in item.texts.items():
            counts = lengths.setdefault(field, {unit: [] for unit in units})
            counts["words"].append(len(text.split()))
            if tokenizer is not None:
                counts["tokens"].append(len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))
    texts = {
        field: {unit: {"count": len(values), **quantiles(values)} for unit, values in counts.items()}
        for field, counts in lengths.items()
    }
    return {"rows": len(part), "keys": len({item.key for item in part}), "texts": texts}


# -- what a directory is of ------------------------------------------------------------------------------------


def origin_of(config: PrepareConfig, items: Sequence[Item]) -> dict[str, Any]:
    """Return what decides the files: the recipe without its place, and the rows that were read."""
    return {
        "config": config.model_dump(mode="json", exclude={"output"}),
        "inputs": {str(file): hashed(file) for file in input_files(config)},
        "rows_sha256": rows_hash(items),
    }


def input_files(config: PrepareConfig) -> list[Path]:
    """Return the local files that are read; a hub's rows and installed packages are known by `rows_sha256` alone."""
    if config.data is None:
        return [Path(str(config.file))]
    named = [
        Path(path) for name in ("path", "heldout_path") if isinstance(path := getattr(config.data, name, None), str)
    ]
    return [
        file for path in named for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path]) if file.is_file()
    ]


def hashed(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def refuse_foreign_directory(path: Path) -> None:
    """Raise ConfigError, before anything is read, for a directory that holds something else."""
    if path.is_dir() and any(path.iterdir()) and not isinstance(read_json(path / MANIFEST), dict):
        raise ConfigError(f"output {path} holds files, and no {MANIFEST} of prepared data; choose an empty directory")


def refuse_another_origin(path: Path, origin: Mapping[str, Any]) -> None:
    before = read_json(path / MANIFEST)
    if before is None:
        return
    different = [name for name, value in origin.items() if before.get(name) != value]
    if different:
        raise ConfigError(
            f"output {path} was prepared from other {' and '.join(different)}; runs may depend on it, so it stays: "
            "choose another output, or remove the directory yourself"
        )


# -- telling -------------------------------------------------------------------------------------------------


def load_with(config: PrepareConfig, parts: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    """Return a data section for the files: the largest share trains, the next in order is held out."""
    train = max(config.shares, key=lambda name: config.shares[name])
    heldout = next((name for name in config.shares if name != train), train)
    paths = {"path": f"{config.output}/{train}.jsonl", "heldout_path": f"{config.output}/{heldout}.jsonl"}
    if config.data is not None:
        gold = {} if any(item.row["gold"] is None for item in parts[train]) else {"gold_field": "gold"}
        return {"type": "jsonl", **paths, "id_field": "id", **gold}
    fields = parts[train][0].row.keys()
    if {"next_chapter", "story_id", "chapter_index"} <= fields:
        return {"type": "next_chapter", "path": config.output}
    if "messages" in fields:
        return {"type": "messages", **paths}
    return {"type": "jsonl", **paths}


def tell(config: PrepareConfig, manifest: Mapping[str, Any]) -> None:
    tokens = config.tokenizer is not None
    table = Table(
        "file",
        "rows",
        config.split_key or "keys",
        "text",
        "words: median",
        "95 %",
        "max",
        *(("tokens: 95 %", "max") if tokens else ()),
    )
    for name, facts in manifest["statistics"].items():
        first = [f"{name}.jsonl", f"{facts['rows']:,}", f"{facts['keys']:,}"]
        shown = {
            field: units for field, units in facts["texts"].items() if config.data or units["words"]["max"] > NAME_WORDS
        }
        for field, units in shown.items():
            words = [f"{units['words'][quantile]:,}" for quantile in ("median", "p95", "max")]
            more = [f"{units['tokens'][quantile]:,}" for quantile in ("p95", "max")] if tokens else []
            table.add_row(*first, field, *words, *more)
            first = ["", "", ""]
        table.add_section()
    rich.print(table)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in manifest["dropped"].items()) or "nothing"
    rich.print(f"left out: {left_out}")
    total = sum(facts["rows"] for facts in manifest["statistics"].values())
    for name, share in config.shares.items():
        rows = manifest["statistics"][name]["rows"]
        if abs(rows - share * total) >= 1:
            rich.print(
                f"{name}: {rows:,} rows where {100 * share:g} % are {share * total:,.1f}, since none stays empty and "
                f"what belongs together stays together"
            )
    rich.print(f"written to {config.path}, with {MANIFEST}; to use it:\n")
    print(OmegaConf.to_yaml(OmegaConf.create({"data": manifest["load_with"]})), end="")


if __name__ == "__main__":
    run_program(prepare, PrepareConfig, "jobs/prepare_data.py")
