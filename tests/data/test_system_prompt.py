import json
from pathlib import Path
from typing import get_args

import pytest

from troupe.config.data import MixtureConfig, Source, SourceConfig
from troupe.config.made_data import ShortStoriesConfig, TicTacToeConfig, WordProblemsConfig
from troupe.config.own_data import MessagesConfig
from troupe.data import load_data

PROMPT = "End with a line '#### ' and the number."
SYSTEM = {"role": "system", "content": PROMPT}


@pytest.mark.parametrize("source", get_args(Source))
def test_every_data_set_has_the_setting(source: type) -> None:
    assert {"system_prompt", "system_prompt_wins"} <= source.model_fields.keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize("source", [WordProblemsConfig, ShortStoriesConfig, TicTacToeConfig])
def test_it_stands_before_every_prompt_of_both_sides_and_nothing_else_changes(source: type[SourceConfig]) -> None:
    plain = load_data(source(num_train=5, num_heldout=3))
    told = load_data(source(num_train=5, num_heldout=3, system_prompt=PROMPT))
    for before, after in zip([*plain.train, *plain.heldout], [*told.train, *told.heldout], strict=True):
        assert list(after.prompt) == [SYSTEM, *before.prompt]
        assert (after.sample_id, after.gold, after.fields) == (before.sample_id, before.gold, before.fields)


def test_a_system_message_of_the_rows_own_stays_unless_the_setting_wins(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    file = tmp_path / "chats.jsonl"
    questions = [{"role": "user", "content": f"{number}+5?"} for number in range(4)]
    answer = {"role": "assistant", "content": "8"}
    file.write_text("".join(json.dumps({"messages": [system, each, answer]}) + "\n" for each in questions))
    for wins, first in ((False, system), (True, SYSTEM)):
        data = load_data(MessagesConfig(path=str(file), num_heldout=1, system_prompt=PROMPT, system_prompt_wins=wins))
        assert {sample.prompt[0]["content"] for sample in [*data.train, *data.heldout]} == {first["content"]}  # type: ignore[index]
        assert all(len(sample.prompt) == 2 for sample in data.train)


def test_each_source_of_a_mixture_has_its_own() -> None:
    sources = {"sums": WordProblemsConfig(num_train=3, num_heldout=2, system_prompt=PROMPT)}
    sources["plain"] = WordProblemsConfig(num_train=3, num_heldout=2, seed=1)
    data = load_data(MixtureConfig(sources=sources))
    roles = {(sample.fields["source"], sample.prompt[0]["role"]) for sample in data.train}  # type: ignore[index]
    assert roles == {("sums", "system"), ("plain", "user")}
