from pathlib import Path
from typing import Any

import pytest

from tests.data.packages import FIXTURES
from tests.rewards.chat_server import Answer, ChatServer
from troupe.config.published_data import RepliqaConfig
from troupe.data import load_data
from troupe.errors import ConfigError, RewardError
from troupe.files import read_lines
from troupe.jobs.distil import DistilConfig, distil


def recipe(tmp_path: Path, url: str, **settings: Any) -> DistilConfig:
    endpoint = {"base_url": url, "model": "teacher", "api_key_env": None, "patience_s": 0, "backoff_s": 0.01}
    return DistilConfig(
        data={"type": "repliqa", "path": str(FIXTURES / "repliqa"), "num_heldout": 1},
        endpoint={**endpoint, "cache": str(tmp_path / "replies.sqlite")},
        output=str(tmp_path / "teacher.jsonl"),
        **settings,
    )


def test_answers_become_demonstrations_of_both_sides_and_are_asked_for_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def teach(body: dict[str, Any], number: int) -> Answer | str:
        document = body["messages"][-1]["content"]
        if "Kvorn" in document:
            return Answer(status=503)
        return "far too long " * 9 if "Hollis" in document else "A summary."

    with ChatServer(teach).running() as server:
        config = recipe(tmp_path, server.url, max_chars=50)
        distil(config)
        assert "2 answers written" in " ".join(capsys.readouterr().out.split())
        asked = len(server.bodies)
        distil(config)
        assert len(server.bodies) == asked + 1  # the one that failed
    written = read_lines(tmp_path / "teacher.jsonl")
    assert {row["text"] for row in written} == {"A summary."}
    settings = {"path": str(FIXTURES / "repliqa"), "num_heldout": 1, "demonstrations": str(tmp_path / "teacher.jsonl")}
    data = load_data(RepliqaConfig(**settings, seed=seed_that_holds_out(written[0]["sample_id"])))
    assert [sample.fields["demonstration"] for sample in (*data.train, *data.heldout)] == ["A summary."] * 2
    assert data.dropped == {"no_demonstration": 2}


def seed_that_holds_out(sample_id: str) -> int:
    for seed in range(50):
        data = load_data(RepliqaConfig(path=str(FIXTURES / "repliqa"), num_heldout=1, seed=seed))
        if data.heldout[0].sample_id == sample_id:
            return seed
    raise AssertionError(sample_id)


def test_a_missing_key_is_named_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    config = recipe(tmp_path, "http://127.0.0.1:9/v1")
    config = config.model_copy(update={"endpoint": config.endpoint.model_copy(update={"api_key_env": "NO_SUCH_KEY"})})
    with pytest.raises(ConfigError, match="endpoint: the environment variable NO_SUCH_KEY"):
        distil(config)


def test_where_no_answer_fits_nothing_is_written_and_the_bound_is_named(tmp_path: Path) -> None:
    with ChatServer(lambda body, number: "far too long").running() as server:
        config = recipe(tmp_path, server.url, max_chars=3)
        with pytest.raises(RewardError, match=r"none of \d+ answers could be had or fits max_chars \(3\); nothing was"):
            distil(config)
    assert not (tmp_path / "teacher.jsonl").exists()
