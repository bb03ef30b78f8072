"""Secrets are planted wherever text comes in, and looked for wherever it goes out."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.program import run_program
from troupe.environment import load_env_file
from troupe.errors import ConfigError, RewardError
from troupe.files import JsonLines, read_lines, write_atomically
from troupe.records import Branch, Group, JudgeCall, Sample, Score
from troupe.report.observers import open_run
from troupe.runs.checkpoint import save_state
from troupe.runs.run_records import answer_row
from troupe.secrets import SecretFilter, known_secrets, name_secret, public_text

KEY = "sk-planted/0123456789+abcdef"
ODD = 'pass "word" & <more> ü\\'
"""As JSON, HTML and addresses write it, it looks otherwise."""
PASSWORD = "hunter2hunter2"
"""In no variable: of an address."""


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_API_KEY", KEY)
    monkeypatch.setenv("PLANTED_PASSWORD", ODD)
    monkeypatch.setenv("WANDB_MODE", "offline")


# -- a text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (f"key {KEY}.", "key $PLANTED_API_KEY."),
        (json.dumps({"a": ODD}, ensure_ascii=False), '{"a": "$PLANTED_PASSWORD"}'),
        ("https://x/?k=sk-planted%2F0123456789%2Babcdef", "https://x/?k=$PLANTED_API_KEY"),
        ("<td>pass &quot;word&quot; &amp; &lt;more&gt; ü\\</td>", "<td>$PLANTED_PASSWORD</td>"),
        ("from https://me:hunter2@host/a and ssh://git@host", "from https://***@host/a and ssh://***@host"),
        ("Authorization: Bearer abc.def-123456789, ok", "Authorization: Bearer ***, ok"),
        ("{'authorization': 'Basic bWU6aHVudGVyMg=='}", "{'authorization': 'Basic ***'}"),
        ("Basic understanding of a Bearer instrument", "Basic understanding of a Bearer instrument"),
        ("mail to a@b.c, see http://host/a@b", "mail to a@b.c, see http://host/a@b"),
    ],
)
def test_a_text_is_told_without_its_secrets(planted: None, text: str, public: str) -> None:
    assert public_text(text) == public


def test_names_decide_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "long-enough-value"
    secret = ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MYSQL_PWD", "TROUPE_API_KEY"]
    public = ["TOKENIZERS_PARALLELISM", "RAY_AUTH_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE", "OLDPWD", "KEYBOARD"]
    for name in [*secret, *public, "JUDGE"]:
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SHORT_KEY", "abc")
    assert set(secret) <= known_secrets().keys()
    assert not {*public, "JUDGE", "SHORT_KEY"} & known_secrets().keys()
    name_secret("JUDGE")
    assert "JUDGE" in known_secrets()


def test_of_two_secrets_the_longer_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "0123456789")
    monkeypatch.setenv("B_TOKEN", "0123456789abcdef")
    assert public_text("0123456789abcdef 0123456789") == "$B_TOKEN $A_TOKEN"


# -- a recipe ----------------------------------------------------------------------------------------------------------


def test_a_recipe_that_holds_a_key_itself_is_refused_without_the_key() -> None:
    with pytest.raises(ConfigError, match=r"rewards\.0\.args\.api_key: a recipe is saved and shown") as refused:
        load_config(GRPOConfig, ["rewards=[{fn: math_answer, args: {api_key: k-0123456789}}]"])
    assert "0123456789" not in str(refused.value)


def test_a_key_that_a_recipe_takes_from_any_variable_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE", "j-0123456789")
    config = load_config(GRPOConfig, ["rewards=[{fn: length, args: {api_key: '${oc.env:MY_JUDGE}'}}]"])
    assert config.rewards[0].args == {"api_key": "j-0123456789"}
    assert public_text("j-0123456789") == "$MY_JUDGE"


# -- what leaves -------------------------------------------------------------------------------------------------------


def test_data_is_written_as_it_is_and_everything_else_is_not(planted: None, tmp_path: Path) -> None:
    write_atomically(tmp_path / "data", KEY, is_data=True)
    write_atomically(tmp_path / "text", KEY)
    JsonLines(tmp_path / "lines").append({"a": [ODD, {"b": KEY}]})
    assert (tmp_path / "data").read_text() == KEY
    assert (tmp_path / "text").read_text() == "$PLANTED_API_KEY"
    assert read_lines(tmp_path / "lines") == [{"a": ["$PLANTED_PASSWORD", {"b": "$PLANTED_API_KEY"}]}]


def test_a_log_record_is_masked_with_its_traceback(planted: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(SecretFilter())
    try:
        raise ValueError(f"no {KEY}")
    except ValueError:
        logging.getLogger("core.somewhere").exception("refused %s by %s", KEY, f"http://me:{PASSWORD}@host")
    assert "refused $PLANTED_API_KEY by http://***@host" in caplog.text
    assert "ValueError: no $PLANTED_API_KEY" in caplog.text
    assert KEY not in caplog.text
    assert PASSWORD not in caplog.text


def run_into_an_error(config: GRPOConfig) -> None:
    """A run that meets the secrets in a prompt, an answer, an endpoint's body, an event and an exception."""
    said = f"{KEY} and {ODD} at https://me:{PASSWORD}@host"
    call = JudgeCall(
        host="judge", model="m", messages=[{"role": "user", "content": said}], status=f"401: {said}",
        requested_at=1.0, latency_s=1.0, text=said,
    )  # fmt: skip
    group = Group(
        sample=Sample(sample_id="toy/1", prompt=f"Repeat: {said}", gold=said),
        prompt_ids=[1],
        branches=[Branch(token_ids=[2], text=said)],
        scores=[Score(value=1.0, parts={"right": 1.0}, calls=[call])],
    )
    with open_run(config) as run:
        logging.getLogger("core.here").warning("the judge said %s", said)
        run.write_placement([{"role": "policy", "rank": 0, "place": said, "device": "CPU"}])
        for step in run.steps(1, config.steps):
            watch = run.watch_calls(step, "rollout")
            assert watch is not None
            watch(group, 0.0, 1.0)
            run.log_rollouts(step, [group], limit=1)
            run.log_answers(step, "heldout", [answer_row(group)])
            run.event("retry", reason=said, tried=[{"body": said}])
            with run.checkpoints.writing(step, metadata={"model": said}) as path:
                save_state(path, {"step": step})
            run.log({"reward/mean": 1.0, "eval/heldout/accuracy": 1.0})
            run.end_step(step)
        try:
            raise ValueError(said)
        except ValueError as error:
            raise RewardError(f"the judge answered 401: {said}") from error


def test_a_planted_secret_is_in_no_file_of_a_run_and_not_on_the_console(
    planted: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "steps=2", f"run.directory={tmp_path}", "run.name=planted", "run.trackers=[wandb, tensorboard]",
        f"run.wandb.group={KEY}", f"run.wandb.tags=['{ODD}']",
        "run.calls.console_fraction=1", "rewards=[{fn: length, args: {note: '${oc.env:PLANTED_API_KEY}'}}]",
        f"model={{type: pretrained, path: 'https://me:{PASSWORD}@host/model'}}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(SystemExit):
        run_program(run_into_an_error, GRPOConfig, "jobs/train.py")
    console = "".join(capfd.readouterr())
    assert "the judge answered 401: $PLANTED_API_KEY" in console
    assert "the judge said $PLANTED_API_KEY" in console
    files = [path for path in (tmp_path / "planted").rglob("*") if path.is_file()]
    assert {"config.yaml", "rollouts.jsonl", "answers.jsonl", "calls.jsonl", "events.jsonl", "report.html"} <= {
        path.name for path in files
    }
    assert [path for path in files if path.suffix == ".wandb"]
    assert [path for path in files if "tfevents" in path.name]
    for secret in (KEY, ODD, json.dumps(ODD, ensure_ascii=False)[1:-1], PASSWORD):
        assert secret not in console
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []
    events = {event["kind"]: event for event in read_lines(tmp_path / "planted" / "events.jsonl")}
    assert events["failed"]["error"].startswith("RewardError: the judge answered 401: $PLANTED_API_KEY and $PLANTED")
    assert load_config(GRPOConfig, [str(tmp_path / "planted" / "config.yaml")]).run.wandb.group == KEY


def test_a_secret_of_the_file_env_is_one_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILED_TOKEN", "")
    monkeypatch.delenv("FILED_TOKEN")
    (tmp_path / ".env").write_text(f"FILED_TOKEN='{KEY}'\n")
    load_env_file(tmp_path / ".env")
    assert public_text(KEY) == "$FILED_TOKEN"
