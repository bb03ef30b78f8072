"""The README.md beside an exported model: what it is, where it is from, how it was checked, and whose terms apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from troupe.files import to_json
from troupe.runs.provenance import Provenance, hub_name


def model_card(
    origin: Provenance, *, name: str, base_model: str | None, license_name: str | None, facts: Mapping[str, Any]
) -> str:
    """Markdown with the hub's YAML header; `facts` are the export's own: dtype, adapter, source, gap."""
    base = base_model or next((model for model in reversed(origin.chain) if hub_name(model)), None)
    adapter = facts["adapter"] == "apart"
    header = {
        "license": license_name,
        "base_model": base,
        "library_name": "peft" if adapter else "transformers",
        "tags": ["troupe", *(["lora"] if adapter else [])],
    }
    # JSON is YAML, and quotes what needs it.
    lines = ["---", *(f"{key}: {to_json(value)}" for key, value in header.items() if value is not None), "---", ""]
    lines += [
        f"# {name}",
        "",
        *_table(origin, base, facts),
        "",
        _licence(base, license_name),
        "",
        "## Check",
        "",
        _check(facts),
    ]
    lines += ["", "## Use", "", "```python", *_example(adapter, base, scalar=facts["head"] == "scalar"), "```", ""]
    return "\n".join(lines)


def _table(origin: Provenance, base: str | None, facts: Mapping[str, Any]) -> list[str]:
    data = (origin.recipe.get("data") or {}).get("type")
    rows = {
        "base model": base or ("made from scratch" if origin.chain[-1:] == ("scratch",) else "unknown"),
        "runs, latest first": " <- ".join(origin.chain) if origin.run else None,
        "job": origin.program,
        "step": origin.step,
        "metric at that step": None if origin.metric is None else f"{origin.metric:.4g}",
        "training data": data,
        "weights": f"{facts['dtype']}, {'adapter apart' if facts['adapter'] == 'apart' else 'one model'}, from the "
        f"{facts['source']}",
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items() if value is not None)]


def _licence(base: str | None, license_name: str | None) -> str:
    given = f"Licence: {license_name}." if license_name else "No licence was given for these weights."
    terms = (
        f"The terms of {base} apply to what was made from it"
        if base
        else "The terms of the base model, if it has one, apply"
    )
    return f"{given} {terms}, and those of the training data."


def _check(facts: Mapping[str, Any]) -> str:
    texts = f"{facts['num_prompts']} texts"
    what = (
        f"Scores of {texts}"
        if facts["head"] == "scalar"
        else f"Log-probabilities of {facts['num_tokens']} tokens in {texts}"
    )
    return (
        f"{what}, loaded from these files and from the source: mean |difference| {facts['mean_gap']:.2g}, largest "
        f"{facts['largest_gap']:.2g} (bound of the mean: {facts['bound']:g})."
    )


def _example(adapter: bool, base: str | None, *, scalar: bool) -> list[str]:
    cls = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    lines = [
        f"from transformers import {cls}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("<this directory>")',
    ]
    if not adapter:
        return [*lines, f'model = {cls}.from_pretrained("<this directory>")']
    return [
        "from peft import PeftModel",
        *lines,
        f'model = {cls}.from_pretrained("{base or "<this directory>/base"}")',
        'model = PeftModel.from_pretrained(model, "<this directory>")',
    ]
