"""A dry run and a run find the same mistakes, with the same sentence, before the first process."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.actors.small import write_model
from troupe.chat import ChatForm
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.supervised import SFTConfig
from troupe.jobs import train_grpo
from troupe.training.preparation import misfits

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"question": f"What is {n} + 1?", "answer": f"#### {n + 1}", "good": f"{n + 1}", "bad": "no"} for n in range(12)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one without an end token, and data."""
    path = tmp_path_factory.mktemp("preparation")
    write_model(path / "model", tied=True)
    write_model(path / "endless", tied=True)
    settings = json.loads((path / "endless" / "tokenizer_config.json").read_text())
    (path / "endless" / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    (path / "endless" / "chat_template.jinja").unlink()  # it would have an end of its own
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (path / "nobody.jsonl").write_text("".join(json.dumps({**row, "answer": "nobody"}) + "\n" for row in ROWS))
    return path


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, job: str, *arguments: str) -> None:
    file = ROOT / "jobs" / f"{job}.py"
    monkeypatch.setattr(sys, "argv", [str(file), *(each.format(at=folder) for each in arguments)])
    monkeypatch.chdir(folder)
    runpy.run_path(str(file), run_name="__main__")


DATA = "data={{type: jsonl, path: {at}/rows.jsonl, prompt_field: question, gold_field: answer}}"
PAIRS = "data={{type: jsonl, path: {at}/rows.jsonl, prompt_field: question, chosen_field: good, rejected_field: bad}}"
MODEL = "model.path={at}/model"
SHORT = ["rollout.max_prompt_tokens=60", "max_length=100"]
LENGTHS = ["max_prompt_tokens=60", "max_response_tokens=40"]
RL = [MODEL, DATA, SHORT[0]]

MISTAKES = [
    ("train_grpo", [*RL, "rewards=[{{fn: math_anwser}}]"], "unknown reward 'math_anwser'; did you mean 'math_answer'?"),
    ("train_rloo", [*RL, "data.path={at}/nowhere.jsonl"], "nowhere.jsonl; name a file of rows"),
    ("train_grpo", [*RL, "data.prompt_field=qestion"], "rows.jsonl line 1: field 'qestion' is missing"),
    ("train_grpo", [*RL, "data.path={at}/nobody.jsonl"], "reward math_answer: the gold answer 'nobody' holds no " "number"),
    ("train_grpo", [*RL, "model.path={at}/endless"], "endless has no end token, so no answer could ever end"),
    ("train_grpo", [*RL, "data.gold_field=null"], "reward math_answer: the sample has no gold answer"),
    ("train_sft", [MODEL, DATA, SHORT[1], "data.gold_field=null"], "has no answer to imitate"),
    ("train_sft", ["model.path={at}/endless", DATA, SHORT[1]], "endless has no end token"),
    ("train_dpo", [MODEL, DATA, SHORT[1]], "answers"),
    ("train_reward_model", [MODEL, DATA, SHORT[1]], "answers"),
    ("evaluate", ["model={at}/model", DATA, *LENGTHS, "data.path={at}/nobody.jsonl"], "the gold answer 'nobody' " "holds " "no " "number"),
    ("score", ["file={at}/rows.jsonl", "gold_field=bad", "answer_field=good"], "the gold answer 'no' holds no number"),
]  # fmt: skip


@pytest.mark.parametrize(("job", "arguments", "sentence"), MISTAKES)
def test_a_dry_run_and_a_run_refuse_the_same_with_one_sentence_and_leave_nothing(
    job: str,
    arguments: list[str],
    sentence: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = []
    for flags in (["--dry-run"], []):
        with pytest.raises(SystemExit) as end:
            start(monkeypatch, folder, job, *arguments, *flags)
        assert end.value.code == 2
        told.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")])
    assert told[0] == told[1]
    assert sentence in told[0][0]
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("train_grpo", RL),
        ("train_sft", [MODEL, DATA, SHORT[1]]),
        ("train_dpo", [MODEL, PAIRS, SHORT[1]]),
        ("train_reward_model", [MODEL, PAIRS, SHORT[1]]),
        ("evaluate", ["model={at}/model", DATA, *LENGTHS]),
    ],
)
def test_a_dry_run_shows_a_prompt_as_the_model_reads_it_and_a_recipe(
    job: str,
    arguments: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    system = "data.system_prompt=Answer briefly."
    start(monkeypatch, folder, job, *arguments, system, "--dry-run")
    printed = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    shown = [line.removeprefix("# | ") for line in printed.splitlines() if line.startswith("# | ")]
    assert shown[:3] == ["<|im_start|>system", "Answer briefly.<|im_end|>", "<|im_start|>user"]
    assert shown[-1] == "<|im_start|>assistant"
    count = len(tokenizer("\n".join(shown) + "\n")["input_ids"])
    assert f", {count} tokens, as the model reads it:" in printed
    assert "system_prompt: Answer briefly." in printed
    assert not (folder / "runs").exists()


def test_a_recipe_alone_is_read_where_its_inputs_are_not_there_yet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, folder, "train_grpo", "model.path=runs/sft", DATA, "--dry-run", "--recipe-only")
    assert "path: runs/sft" in capsys.readouterr().out


# -- what only looks wrong ---------------------------------------------------------------------------------------

WIDE, NARROW = {"hidden_size": 576}, {"hidden_size": 128}
STRICT = "rewards=[{fn: math_answer}]"
PRETRAINED = ["model.path=some/model"]


def warned(settings: dict[str, Any], prompt: str, *arguments: str, cls: Any = GRPOConfig) -> list[str]:
    config = load_config(cls, [*PRETRAINED, *arguments])
    return [sentence.split(" is for ")[0].split(" wants ")[0] for sentence in misfits(config, settings, prompt)]


def test_the_defaults_for_models_made_here_are_warned_of_where_a_pretrained_model_is_given() -> None:
    assert warned(WIDE, "2+2?") == [
        "policy.learning_rate 0.0001",
        "strict math_answer",
        "rollout.max_response_tokens 40",
    ]
    assert warned({"text_config": WIDE}, "2+2?") == warned({"n_embd": 768}, "2+2?") == warned(WIDE, "2+2?")
    assert warned(NARROW, "2+2?") == []


def test_what_fits_a_pretrained_model_is_not_warned_of() -> None:
    fits = ["policy.learning_rate=1e-6", "rollout.max_response_tokens=256"]
    assert warned(WIDE, "End with a line '#### n'.", *fits) == []
    assert warned(WIDE, "2+2?", *fits, "rewards=[{fn: math_answer, args: {strict: false}}]") == []
    assert warned(WIDE, "2+2? ####", "policy.lora.rank=8", "rollout.max_response_tokens=256") == []
    assert warned(WIDE, "", "engine.learning_rate=2e-5", cls=SFTConfig) == []
    assert warned(WIDE, "", "engine.learning_rate=1e-3", cls=SFTConfig) == ["engine.learning_rate 0.001"]


@pytest.mark.parametrize("name", ["gsm8k_8xh100_colocated", "gsm8k_8xh100_separate"])
def test_recipes_for_real_models_fit_them(name: str) -> None:
    config = load_config(GRPOConfig, [str(ROOT / "configs" / f"{name}.yaml")])
    assert list(misfits(config, {"hidden_size": 2048}, str(config.data.system_prompt))) == []  # type: ignore[union-attr]


def test_answers_that_are_cut_at_the_first_step_are_told_with_the_end_tokens(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[dict[str, Any]] = []
    run: Any = SimpleNamespace(event=lambda kind, **fields: events.append({"kind": kind, **fields}))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    other = tokenizer.convert_tokens_to_ids("<pad>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, other]}))
    ends = train_grpo.end_tokens(ChatForm(tokenizer), str(tmp_path))
    assert ends == f"<pad> {other}, <|im_end|> {tokenizer.eos_token_id}"
    config = GRPOConfig()
    with caplog.at_level(logging.WARNING):
        train_grpo.warn_of_cut_answers(run, {"rollout/truncated_fraction": 0.9}, config, ends)
        assert not events
        train_grpo.warn_of_cut_answers(run, {"rollout/truncated_fraction": 0.96}, config, ends)
    assert events == [{"kind": "answers_cut", "fraction": 0.96, "max_response_tokens": 40, "end_tokens": ends}]
    assert "96 % of the first step's answers were cut at rollout.max_response_tokens (40)" in caplog.text
    assert ends in caplog.text
