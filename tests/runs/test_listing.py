"""What runs there are, where the model of a name is, and a new run from an old one: on local directories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.errors import CheckpointError, ConfigError
from troupe.files import JsonLines, read_lines
from troupe.records import Branch, Group, Sample, Score
from troupe.runs.checkpoint import CheckpointStore
from troupe.runs.fork import fork
from troupe.runs.model_paths import SMOLLM2, locate
from troupe.runs.run_directory import MAY_CHANGE
from troupe.runs.run_listing import Listed, local_runs
from troupe.runs.run_records import answer_row, group_record, token_texts


def write_run(path: Path, steps: dict[int, float], *, status: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A run with a checkpoint of 1,000 bytes and a line at each step, whose metric is the value."""
    path.mkdir(parents=True)
    config = GRPOConfig(run={"name": path.name, "directory": str(path.parent)}, **settings)
    (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json"))))
    (path / "environment.json").write_text('{"program": "train_rloo.py"}')
    if status is not None:
        (path / "status.json").write_text(json.dumps(status))
    store = CheckpointStore(path / "checkpoints", keep_last=99)
    for step, value in steps.items():
        with store.writing(step) as directory:
            (directory / "config.json").write_text("{}")
            (directory / "model.safetensors").write_bytes(bytes([step]) * 1000)
        store.record_metric(step, value)
        JsonLines(path / "metrics.jsonl").append({"step": step, "reward/mean": value})
    JsonLines(path / "events.jsonl").append({"step": 0, "kind": "opened"})
    return path


# -- the list ----------------------------------------------------------------------------------------------------------


def test_a_directory_is_listed_as_its_runs_and_a_run_as_itself(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_run(tmp_path / name, {1: 0.1})
    write_run(tmp_path / "moving", {1: 0.1}).rename(tmp_path / ".moving")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("")
    assert [Path(run.place).name for run in local_runs(tmp_path)] == ["a", "b"]
    assert [Path(run.place).name for run in local_runs(tmp_path / "b")] == ["b"]
    assert local_runs(tmp_path / "notes") == local_runs(tmp_path / "nowhere") == []


def test_a_row_has_state_steps_checkpoints_and_sizes(tmp_path: Path) -> None:
    status = {"state": "stopped", "step": 3, "steps": 9, "updated": "2026-01-02T03:04:05.678Z"}
    run = write_run(tmp_path / "mine", {1: 0.1, 2: 0.9, 3: 0.5}, status=status)
    (listed,) = local_runs(run)
    assert listed.row()[1:4] == ("stopped", "3/9", "1, 2 (best), 3")
    assert listed.row()[5] == "2026-01-02 03:04"
    assert all(1000 < size < 2000 for size in listed.checkpoints.values())
    # Links are not counted twice: `latest` and `best` lead to checkpoints.
    assert listed.size == sum(
        file.stat().st_size
        for file in run.rglob("*")
        if file.is_file() and "latest" not in file.parts and "best" not in file.parts
    )
    assert listed.kept(1) == {2, 3}
    assert listed.kept(99) == {1, 2, 3}


def test_a_run_that_says_nothing_of_itself_is_listed_all_the_same() -> None:
    bare = Listed(place="x", status={}, checkpoints={}, best=None, size=0)
    assert bare.row() == ("x", "unknown", "-", "-", bare.row()[4], "-")


# -- where a model is --------------------------------------------------------------------------------------------------


def test_a_run_is_its_best_checkpoint_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", {1: 0.1, 2: 0.9, 3: 0.5})
    store = CheckpointStore(run / "checkpoints")
    assert locate(str(run)) == str(store.path(2))
    assert locate(str(run), "latest") == str(store.path(3))
    assert locate(str(run), 1) == str(store.path(1))
    with pytest.raises(CheckpointError, match="4"):
        locate(str(run), 4)


def test_a_damaged_checkpoint_is_passed_over_and_refused_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", {1: 0.1, 2: 0.9})
    store = CheckpointStore(run / "checkpoints")
    (store.path(2) / "model.safetensors").write_bytes(b"\x00" * 1000)
    assert locate(str(run)) == str(store.path(1))
    for path in (store.path(2), run / "checkpoints" / "best"):
        with pytest.raises(
            CheckpointError, match=r"is damaged: model\.safetensors has another SHA-256 than .*; give another"
        ):
            locate(str(path))


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-0.5B", "openai-community/gpt2"])
def test_a_hub_name_is_itself(model: str) -> None:
    assert locate(model) == model


def test_a_path_where_nothing_is_gets_what_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"there is no model at .*; give a run directory, a checkpoint directory"):
        locate(str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is not here yet: `make smollm2` makes it"):
        locate(str(SMOLLM2))
    (tmp_path / "plain").mkdir()
    assert locate(str(tmp_path / "plain")) == str(tmp_path / "plain")


def test_a_damaged_state_of_the_trainer_matters_only_where_it_is_needed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", {1: 0.1})
    store = CheckpointStore(run / "checkpoints", keep_last=9)
    with store.writing(2) as directory:
        (directory / "config.json").write_text("{}")
        (directory / "trainer_state").mkdir()
        (directory / "trainer_state" / "rank-0.pt").write_bytes(b"moments")
    (store.path(2) / "trainer_state" / "rank-0.pt").write_bytes(b"MOMENTS")
    assert locate(str(run), "latest") == locate(str(run), 2) == str(store.path(2))
    assert locate(str(run), "latest", whole=True) == str(store.path(1))
    with pytest.raises(CheckpointError, match=r"rank-0\.pt has another SHA-256 than the manifest says"):
        locate(str(run), 2, whole=True)
    with pytest.raises(CheckpointError, match=r"rank-0\.pt has another SHA-256"):
        locate(str(store.path(2)), whole=True)
    (store.path(2) / "trainer_state" / "rank-0.pt").unlink()  # copied without, to be exported
    assert locate(str(store.path(2)), whole=True) == str(store.path(2))


# -- a run from another ------------------------------------------------------------------------------------------------


def test_a_fork_has_the_lines_and_metrics_up_to_its_step_and_a_recipe_of_its_own(tmp_path: Path) -> None:
    source = write_run(tmp_path / "mine", {1: 0.1, 2: 0.9, 3: 0.5})
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    made = fork(source, tmp_path / "new" / "other", step=2, overrides=["policy.learning_rate=0.5", "run.name=lost"])
    assert (made.step, made.program) == (2, "train_rloo.py")
    assert [line["step"] for line in read_lines(made.path / "metrics.jsonl")] == [1, 2]
    store = CheckpointStore(made.path / "checkpoints")
    assert (store.steps(), store.best()) == ([2], 2)
    assert (store.path(2) / "model.safetensors").read_bytes() == bytes([2]) * 1000
    config = load_config(GRPOConfig, [str(made.path / "config.yaml")])
    # The override counts, but for the name: that is the new directory's.
    assert (config.policy.learning_rate, config.run.path) == (0.5, tmp_path / "new" / "other")
    (event,) = read_lines(made.path / "events.jsonl")
    assert (event["kind"], event["source"], event["step"]) == ("forked", str(source), 2)
    assert {file: file.read_bytes() for file in source.rglob("*") if file.is_file()} == before


def test_what_a_fork_appends_does_not_reach_the_run_it_is_from(tmp_path: Path) -> None:
    source = write_run(tmp_path / "mine", {1: 0.1})
    made = fork(source, tmp_path / "other", step="latest")
    JsonLines(made.path / "metrics.jsonl").append({"step": 2})
    assert [line["step"] for line in read_lines(source / "metrics.jsonl")] == [1]


def test_a_fork_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    source = write_run(tmp_path / "mine", {1: 0.1})
    with pytest.raises(ConfigError, match="exists; choose another name, or remove it"):
        fork(source, source, step=1)
    with pytest.raises(CheckpointError):
        fork(source, tmp_path / "other", step=7)
    with pytest.raises(ConfigError, match="is not an override"):
        fork(source, tmp_path / "other", step=1, overrides=["=3"])
    with pytest.raises(ConfigError, match=r"a fork cannot change policy\.lora\.rank \(absent -> 8\), since"):
        fork(source, tmp_path / "other", step=1, overrides=["policy.lora.rank=8"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_fork_begins_at_the_best_step_or_the_latest_and_at_no_damaged_one(tmp_path: Path) -> None:
    source = write_run(tmp_path / "mine", {1: 0.1, 2: 0.9, 3: 0.5})
    assert [fork(source, tmp_path / str(step), step=step).step for step in ("best", "latest")] == [2, 3]  # type: ignore[arg-type]
    (CheckpointStore(source / "checkpoints").path(3) / "model.safetensors").write_bytes(b"\x00" * 1000)
    assert fork(source, tmp_path / "newest whole", step="latest").step == 2
    with pytest.raises(CheckpointError, match="another SHA-256"):
        fork(source, tmp_path / "damaged", step=3)
    assert not (tmp_path / "damaged").exists()


def test_a_fork_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    source = write_run(tmp_path / "mine", {1: 0.1})
    (source / "environment.json").unlink()
    left = tmp_path / ".forking-other" / "checkpoints" / "step-000001"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"half")
    made = fork(source, tmp_path / "other", step=1)
    assert made.program == "train_grpo.py"  # of a run that does not say
    assert [path.name for path in made.path.rglob("half.safetensors")] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other"]


def test_a_fork_reads_no_secret_of_the_environment_into_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_run(tmp_path / "mine", {1: 0.1})
    text = (source / "config.yaml").read_text()
    (source / "config.yaml").write_text(text + "owner: ${oc.env:SOME_API_KEY}\n")
    monkeypatch.setenv("SOME_API_KEY", "sk-planted-secret-1")
    made = fork(source, tmp_path / "other", step=1, overrides=["judge=${oc.env:SOME_API_KEY}"])
    files = [file.read_text() for file in made.path.rglob("*") if file.is_file() and file.suffix != ".safetensors"]
    assert not any("planted" in text for text in files)
    recipe = OmegaConf.load(made.path / "config.yaml")
    assert recipe.owner == recipe.judge == "sk-planted-secret-1"  # where it is read, it is there


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_group_is_a_line_with_every_branch_and_an_evaluated_one_its_first() -> None:
    turns: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    branches = [Branch(token_ids=[1, 2], text="4"), Branch(token_ids=[3], text="5", finish_reason="length")]
    group = Group(sample=Sample(sample_id="s", prompt=turns, gold="4"), prompt_ids=(1,), branches=branches)
    bare = group_record(group)
    assert (bare["prompt"], bare["gold"]) == ("system: Be brief.\n\nuser: 2+2?", "4")
    assert [(one["text"], one["score"], one["num_tokens"], one["finish_reason"]) for one in bare["branches"]] == [
        ("4", None, 2, "stop"),
        ("5", None, 1, "length"),
    ]
    scored = group.with_scores([Score(value=1.0, parts={"accuracy": 1.0}), Score(value=None)])
    assert [one["score"] for one in group_record(scored)["branches"]] == [1.0, None]
    assert answer_row(scored)["metrics"] == {"accuracy": 1.0}
    assert (answer_row(group)["metrics"], answer_row(group)["text"]) == ({}, "4")


def test_turns_that_call_tools_and_their_results_are_shown_in_a_prompt() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    turns: Any = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "18", "tool_call_id": "c1"},
    ]
    group = Group(sample=Sample(sample_id="s", prompt=turns), prompt_ids=(1,), branches=[Branch(token_ids=[2])])
    shown = 'user: Look.\n\nassistant: {"name": "look", "arguments": {"at": "it"}}\n\ntool: 18'
    assert group_record(group)["prompt"] == answer_row(group)["prompt"] == shown


def spelled(ids: Sequence[int]) -> str:
    """A decoder whose tokens are bytes."""
    return bytes(ids).decode("utf-8", "replace")


def test_an_episode_is_written_turn_by_turn_and_the_models_turns_by_token_with_their_log_probabilities() -> None:
    said, heard, ended = b"2*3", b"\n6\n", b"6"
    branch = Branch(
        token_ids=[*said, *heard, *ended],
        text="6",
        loss_mask=[True] * 3 + [False] * 3 + [True],
        logprobs=[-0.1234, 0.0, -2.0, 0.0, 0.0, 0.0, -0.004],
        turns=[("assistant", 3), ("tool calculator", 3), ("assistant", 1)],
    )
    group = Group(sample=Sample(sample_id="s", prompt="6?"), prompt_ids=(1,), branches=[branch])
    (written,) = group_record(group, spelled)["branches"]
    assert written["turns"] == [
        {"role": "assistant", "trained": True, "tokens": ["2", "*", "3"], "logprobs": [-0.12, 0.0, -2.0]},
        {"role": "tool calculator", "trained": False, "text": "\n6\n"},
        {"role": "assistant", "trained": True, "tokens": ["6"], "logprobs": [0.0]},
    ]
    assert "-0.0" not in json.dumps(written["turns"][2])
    assert "turns" not in group_record(group)["branches"][0]
    assert answer_row(group, spelled)["turns"] == written["turns"]
    assert "turns" not in answer_row(group)


def test_an_answer_of_one_turn_is_the_assistants() -> None:
    branch = Branch(token_ids=list(b"4"), text="4", logprobs=[-1.0])
    group = Group(sample=Sample(sample_id="s", prompt="2+2?"), prompt_ids=(1,), branches=[branch])
    turn = {"role": "assistant", "trained": True, "tokens": ["4"], "logprobs": [-1.0]}
    assert group_record(group, spelled)["branches"][0]["turns"] == [turn]
    assert "turns" not in answer_row(group, spelled)  # a held-out answer has them where it has several


@pytest.mark.parametrize("text", ["plain", "naïve – 日本 🙂!", "🙂"])
def test_the_texts_of_tokens_joined_are_the_text_and_a_character_of_several_tokens_is_its_last_ones(text: str) -> None:
    ids = list(text.encode())
    texts = token_texts(ids, spelled)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert all(len(each) < 2 for each in texts)


def test_bytes_that_are_no_text_are_not_waited_for() -> None:
    assert "".join(token_texts([0xFF] * 6 + [0x41], spelled)) == "\ufffd" * 6 + "A"


def test_a_secret_that_several_tokens_spell_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_API_KEY", "k3y-0f-many-t0kens")
    branch = Branch(token_ids=list(b"it is k3y-0f-many-t0kens"), logprobs=[-0.5] * 24)
    group = Group(sample=Sample(sample_id="s", prompt="?"), prompt_ids=(1,), branches=[branch])
    (turn,) = group_record(group, spelled)["branches"][0]["turns"]
    assert turn == {"role": "assistant", "trained": True, "text": "it is k3y-0f-many-t0kens"}  # the file masks texts


def test_settings_that_may_change_are_settings_of_some_job() -> None:
    from tests.job_configs import JOB_CONFIGS
    from troupe.config.fields import dotted_fields

    known = {name for config in JOB_CONFIGS.values() for name, _ in dotted_fields(config)}
    assert [name for name in MAY_CHANGE if name not in known] == []
