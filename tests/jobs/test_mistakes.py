"""Whatever program is given what is not there says so in one line, with status 2, before it starts or writes anything."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

MODEL = ["model.type=pretrained", "model.path=nowhere"]
NO_MODEL = "there is no model at 'nowhere'; give a run directory"
MISTAKES = {
    "benchmark": (["nowhere.yaml"], "nowhere.yaml"),
    "compute_baseline": (["nowhere.yaml"], "nowhere.yaml"),
    "distil": (["nowhere.yaml"], "nowhere.yaml"),
    "evaluate": (["model=nowhere"], NO_MODEL),
    "export": (["model=nowhere"], NO_MODEL),
    "launch": (["up", "--cluster", "nowhere.yaml"], "nowhere.yaml cannot be read: No such file or directory; give"),
    "prepare_data": (["file=nowhere.jsonl", "key=story", "output=out"], "nowhere.jsonl"),
    "report": (["nowhere"], "nowhere is not a run directory: it has no config.yaml"),
    "run_pipeline": (["nowhere.yaml"], "nowhere.yaml"),
    "runs": (["list", "nowhere"], "there are no runs in nowhere; give a directory of runs, or s3://bucket/prefix"),
    "score": (["file=nowhere.jsonl"], "nowhere.jsonl"),
    "serve": (["nowhere"], "nowhere"),
    "train_dpo": (MODEL, NO_MODEL),
    "train_grpo": (MODEL, NO_MODEL),
    "train_ppo": (MODEL, NO_MODEL),
    "train_reward_model": (MODEL, NO_MODEL),
    "train_rloo": (MODEL, NO_MODEL),
    "train_sft": (MODEL, NO_MODEL),
    "watch": (["nowhere"], "nowhere does not exist"),
}
NEEDS_NOTHING = {"doctor"}
"""It looks at the machine alone, and its findings are its answer."""


def test_every_program_is_among_them() -> None:
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} == {*MISTAKES, *NEEDS_NOTHING}


@pytest.mark.parametrize("job", MISTAKES)
def test_what_is_not_there_is_named_in_one_line_and_nothing_is_begun(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, sentence = MISTAKES[job]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "jobs" / f"{job}.py"), *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert list(tmp_path.iterdir()) == []
