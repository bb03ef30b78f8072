"""What is wrong with a recipe, a sentence each: the field, what it is, what was given, and the nearest known name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from troupe.config.fields import LONGEST_SHOWN, Cls, dotted_fields, kind_of, sections_of, tag_of, type_at

SYNONYMS = {
    "lr": "learning_rate",
    "model_name_or_path": "model.path",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "output_dir": "run.directory",
    "run_name": "run.name",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "num_generations": "rollout.group_size",
    "max_new_tokens": "max_response_tokens",
    "max_tokens": "max_response_tokens",
    "max_completion_length": "rollout.max_response_tokens",
    "max_prompt_length": "rollout.max_prompt_tokens",
    "max_seq_length": "max_length",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "kl_coef": "algorithm.kl.coef",
    "beta": "algorithm.kl.coef",
    "report_to": "run.trackers",
    "save_steps": "checkpoint.every",
    "eval_steps": "evaluation.every",
}
"""Names of other libraries -> ours."""
BOUNDS = {
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than or equal to": "at most",
    "less than": "below",
    "a multiple of": "a multiple of",
}
"""How pydantic begins to say of a bound, and how we do."""
WRONG_KIND = ("_type", "_parsing", "_from_float", "literal_error", "finite_number")
"""How the names of pydantic's errors end where a value is not of the field's kind."""


def sentences(cls: Cls, error: ValidationError) -> str:
    """Return a line for each mistake; of a union's several about one field, those that are not about its kind."""
    told: dict[str, dict[str, None]] = {}
    kinds: dict[str, str] = {}
    for detail in error.errors():
        where, annotation = _place(cls, detail["loc"])
        if detail["type"].endswith(WRONG_KIND):
            kinds[where] = _wrong_kind(where, annotation, detail["input"])
        else:
            told.setdefault(where, {})[_sentence(cls, where, annotation, detail)] = None
    for where, sentence in kinds.items():
        told.setdefault(where, {sentence: None})
    return "\n".join(sentence for found in told.values() for sentence in found)


def _place(cls: Cls, loc: Sequence[str | int]) -> tuple[str, Any]:
    """Return the dotted name of a mistake's place, without pydantic's labels of unions, and the type there."""
    names: list[str] = []
    annotation: Any = cls
    for index, part in enumerate(loc):
        inner = type_at(annotation, part)
        if inner is not None:
            is_tag = not isinstance(annotation, type) and inner in sections_of(annotation)
            names += [] if is_tag and tag_of(inner) == part else [str(part)]
            annotation = inner
        elif index == len(loc) - 1 and sections_of(annotation):
            names.append(str(part))  # an unknown key
    return ".".join(names), annotation


def _sentence(cls: Cls, where: str, annotation: Any, detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_meant(cls, where, annotation, detail['input'])}"
    if detail["type"] == "missing":
        return f"{where}: this field is required"
    tags = [str(tag_of(section)) for section in sections_of(annotation)]
    if detail["type"] == "union_tag_not_found":
        return f"{where}: name its type, as in {where}.type={tags[0]}; there are {', '.join(tags)}"
    if detail["type"] == "union_tag_invalid":
        given = str(detail["ctx"]["tag"])
        return f"{where}.type: there is no type {given!r}; {nearest(given, tags) or 'there are ' + ', '.join(tags)}"
    message = detail["msg"].removeprefix("Value error, ")
    for theirs, ours in BOUNDS.items():
        message = message.replace(f"Input should be {theirs}", f"it must be {ours}")
    shown = repr(detail["input"])
    return f"{where or 'the recipe'}: {message}" + (f" (got {shown})" if len(shown) <= LONGEST_SHOWN else "")


def _wrong_kind(where: str, annotation: Any, given: Any) -> str:
    """Return what a field is, what it was given, and how it is written."""
    sections, kind = sections_of(annotation), kind_of(annotation)
    sentence = f"{where or 'the recipe'}: {kind} is needed, but {_shown(given)} was given"
    if kind.startswith("a section") and sections:
        first = next(name for name in sections[0].model_fields if name != "type")
        return f"{sentence}; set its fields, as in {where + '.' if where else ''}{first}=..."
    if "text" in kind.split(" or ") and isinstance(given, int | float):
        return f"""{sentence}; in quotes it is text: {where}='"{json.dumps(given)}"'"""
    near = nearest(str(given), kind.removeprefix("one of ").split(", ")) if kind.startswith("one of ") else ""
    return f"{sentence}; {near}" if near else sentence


def _shown(given: Any) -> str:
    """Return a value with its kind, such as `the list [1, 2]`."""
    if given is None or isinstance(given, bool):
        return json.dumps(given)
    names = {str: "the text", int: "the number", float: "the number", list: "the list", dict: "the section"}
    shown = repr(given)
    shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
    return f"{names.get(type(given), f'the {type(given).__name__}')} {shown}"


# -- the nearest name --------------------------------------------------------------------------------------------------


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'?" of the nearest known name (of a dotted one, its last part), or ""."""
    near = _near(name, list(known))
    return f"did you mean {near!r}?" if near else ""


def _meant(cls: Cls, where: str, annotation: Any, given: Any) -> str:
    """Suggest, for an unknown key, a field of this section, else of another one, else all that are known here."""
    section, _, key = where.rpartition(".")
    here = list(dict.fromkeys(name for one in sections_of(annotation) for name in one.model_fields))
    fitting = difflib.get_close_matches(key, here, n=1, cutoff=0.8)
    if fitting:
        return f"did you mean {fitting[0]!r}?"
    others = _other_types(cls, section, annotation, key)
    if others:
        return f"it belongs to type: {' or '.join(others)}"
    # policy.optimizer.learning_rate: the name inside is the one that is meant.
    inside = f"{key}.{next(iter(given))}" if isinstance(given, Mapping) and given else key
    # What another library's name means may be elsewhere, whatever is spelt alike here.
    near = _near(inside, here) if SYNONYMS.get(key, key) in here or key not in SYNONYMS else None
    if near is None:
        everywhere = [name for name, _ in dotted_fields(cls) if name != section]
        near = _near(f"{section}.{inside}" if section else inside, everywhere)
    return f"did you mean {near!r}?" if near else f"known here: {', '.join(sorted(here))}"


def _other_types(cls: Cls, section: str, annotation: Any, key: str) -> list[str]:
    """Return the other types of a section that have this key."""
    found: Any = cls
    for part in section.split(".") if section else ():
        found = type_at(found, int(part) if part.isdigit() else part)
    here = sections_of(annotation)
    types = [one for one in sections_of(found) if tag_of(one) is not None]
    return [str(tag_of(one)) for one in types if one not in here and key in one.model_fields]


def _near(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that `name` means: a synonym, the same last part, initials, or a near spelling."""
    leaf = name.rpartition(".")[2]
    ours = SYNONYMS.get(leaf, leaf)
    same = [one for one in known if f".{one}".endswith(f".{ours}")]
    initials = [one for one in known if len(leaf) > 1 and _initials(one.rpartition(".")[2]) == leaf]
    close = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
        leaf, [one.rpartition(".")[2] for one in known], n=1, cutoff=0.75
    )
    whole = [one for one in known if close and f".{one}".endswith(f".{close[0]}")]
    found = sorted(same or initials, key=lambda one: (-_shared(one, name), len(one))) or whole
    return found[0] if found else None


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_") if word)


def _shared(one: str, other: str) -> int:
    """Return how many sections two dotted names have in common."""
    return len(set(one.split(".")[:-1]) & set(other.split(".")[:-1]))
