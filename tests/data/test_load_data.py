"""What holds for every data set, shown on all of them: each on its fixture, or on what a small config makes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from tests.data.packages import FIXTURES, write_packages, write_paragraphs
from tests.data.test_documents import write_documents
from troupe.config.data import DataConfig
from troupe.data import load_data
from troupe.records import Sample

REPOSITORY = Path(__file__).resolve().parents[2]
TYPES = [config.model_fields["type"].default for config in get_args(get_args(DataConfig)[0])]
"""The types of all data sets."""
SCRIPT = """
import json, sys
from pydantic import TypeAdapter
from troupe.config.data import DataConfig
from troupe.data import load_data
data = [load_data(TypeAdapter(DataConfig).validate_python(config)) for config in json.loads(sys.argv[1])]
print(json.dumps([[[s.sample_id, s.prompt, s.gold, s.fields] for s in [*d.train, *d.heldout]] for d in data]))
"""


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """One small config for each type of data set."""
    monkeypatch.chdir(tmp_path)  # where docstrings keep their cache
    question = '{{"question": "What is {0} and {0}?", "answer": "Twice {0}.\\n#### {1}"}}\n'
    (tmp_path / "questions.jsonl").write_text("".join(question.format(n, 2 * n) for n in range(100, 120)))
    (tmp_path / "table").mkdir()
    shutil.copy(tmp_path / "questions.jsonl", tmp_path / "table" / "train.jsonl")
    pair = '{{"prompt": "Say {0}.", "better": "Saying {0} as asked.", "worse": "No."}}\n'
    (tmp_path / "pairs.jsonl").write_text("".join(pair.format(n) for n in range(20)))
    roots = [str(write_packages(tmp_path / "source"))]
    hub_sets = {
        name: {"path": str(FIXTURES / name)} for name in ("smoltalk", "ultrafeedback", "tldr", "tldr_comparisons")
    }
    settings: dict[str, dict[str, Any]] = {
        "word_problems": {"num_train": 50, "num_heldout": 10},
        "tic_tac_toe": {"num_train": 50, "num_heldout": 10},
        "short_stories": {"num_train": 50, "num_heldout": 10},
        "reasoning_gym": {"tasks": {"chain_sum": {}, "leg_counting": {}}, "num_train": 20, "num_heldout": 5},
        "textarena": {"name": "GuessTheNumber-v0", "num_train": 20, "num_heldout": 5},
        "gsm8k": {"path": str(tmp_path / "questions.jsonl")},
        "docstrings": {"roots": roots, "num_heldout": 10},
        "docstring_pairs": {"roots": roots, "num_heldout": 10, "pairs_per_text": 3, "half": "second"},
        "next_chapter": {"path": str(FIXTURES / "next_chapter"), "min_chapter_words": 20},
        "messages": {
            "path": str(FIXTURES / "messages" / "train.jsonl"),
            "heldout_path": str(FIXTURES / "messages" / "val.jsonl"),
        },
        "documents": {"roots": [str(write_documents(tmp_path / "documents"))], "num_heldout": 8},
        "repliqa": {"path": str(FIXTURES / "repliqa"), "num_heldout": 1},
        "docstring_sections": {"roots": [str(write_paragraphs(tmp_path / "paragraphs"))], "num_heldout": 10},
        "jsonl": {
            "path": str(tmp_path / "pairs.jsonl"),
            "num_heldout": 5,
            "gold_field": "better",
            "chosen_field": "better",
            "rejected_field": "worse",
        },
        "mixture": {
            "sources": {
                "sums": {"type": "word_problems", "num_train": 30, "num_heldout": 5},
                "posts": {"type": "tldr", "path": str(FIXTURES / "tldr")},
            }
        },
        "hub": {"path": str(tmp_path / "table"), "num_heldout": 5, "prompt_field": "question", "gold_field": "answer"},
        "function": {"fn": "tests.data.test_hub:sums", "gold_field": "answer", "heldout_args": {"split": "test"}},
        **hub_sets,
    }
    return {name: {"type": name, **values} for name, values in settings.items()}


def samples_of(config: dict[str, Any]) -> list[Sample]:
    data = load_data(TypeAdapter(DataConfig).validate_python(config))
    return [*data.train, *data.heldout]


def test_every_data_set_is_shown_here(configs: dict[str, dict[str, Any]]) -> None:
    assert set(configs) == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_ids_are_unique_and_begin_with_where_a_sample_is_from(name: str, configs: dict[str, dict[str, Any]]) -> None:
    ids = [sample.sample_id for sample in samples_of(configs[name])]
    assert len(set(ids)) == len(ids) > 1
    origin = {
        "jsonl": "pairs.jsonl:",
        "messages": ("train.jsonl:", "val.jsonl:"),
        "docstring_pairs": "docstrings/",
        "mixture": ("sums/", "posts/"),
    }.get(name, f"{name}/")
    assert all(sample_id.startswith(origin) for sample_id in ids)


def test_another_process_gets_the_same_samples(configs: dict[str, dict[str, Any]]) -> None:
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(list(configs.values()))],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = [[[s.sample_id, s.prompt, s.gold, s.fields] for s in samples_of(config)] for config in configs.values()]
    assert json.loads(printed) == json.loads(json.dumps(here))
