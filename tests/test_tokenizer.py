"""The tokenizer of a dry run against transformers': the same ids, the same template, or none at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from troupe.chat import encode_prompt
from troupe.records import Sample
from troupe.tokenizer import read_tokenizer
from troupe.training.scratch import light_tokenizer, train_tokenizer

TEXTS = ["Tom has 12 pens. How many?", "user: Emma buys 7 cups \u2014 caf\u00e9 <b>", "#### 19"]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  2+2?\n"}]
TEMPLATES = {
    "chatml": None,
    "json and loops": "{%- for m in messages %}\n  {{- m | tojson }}\n{%- if loop.last %}{% break %}{% endif %}\n{% "
    "endfor %}{{ eos_token }}",
}


def samples() -> list[Sample]:
    return [Sample(sample_id=f"s/{i}", prompt=prompt) for i, prompt in enumerate([*TEXTS, TURNS])]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_tokenizer_json_gives_the_ids_that_transformers_gives(tmp_path: Path, template: str) -> None:
    made = train_tokenizer(TEXTS, 300, 64)
    if TEMPLATES[template] is not None:
        made.chat_template = TEMPLATES[template]
    made.save_pretrained(tmp_path)
    light, whole = read_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert light is not None
    assert (len(light), light.eos_token_id) == (len(whole), whole.eos_token_id)
    for sample in samples():
        ids = encode_prompt(light, sample)
        assert ids == encode_prompt(whole, sample)
        assert light.decode(ids) == whole.decode(ids)


def test_a_model_that_will_be_made_reads_as_it_will() -> None:
    light, whole = light_tokenizer(TEXTS, 300), train_tokenizer(TEXTS, 300, 64)
    for sample in samples():
        assert encode_prompt(light, sample) == encode_prompt(whole, sample)


@pytest.mark.parametrize("change", [{"tokenizer_class": "LlamaTokenizer"}, {"auto_map": {"AutoTokenizer": "x.Y"}}])
def test_what_only_transformers_reads_is_left_to_it(tmp_path: Path, change: dict) -> None:
    train_tokenizer(TEXTS, 300, 64).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert read_tokenizer(tmp_path) is None
