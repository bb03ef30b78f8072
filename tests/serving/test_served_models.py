"""What cannot be served is refused from its files alone, before Ray and vLLM start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig, with_sources
from troupe.errors import CheckpointError, ConfigError, TroupeError
from troupe.runs.checkpoint import CheckpointStore
from troupe.serving.served_models import Served, require_whole, served_models, tensor_shapes

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "dtype": "float32",
    "max_position_embeddings": 512,
}


def write_model(directory: Path, *, weights: bool = True, size: int = 4, **settings: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**QWEN, **settings}))
    if weights:
        save_file({"model.embed_tokens.weight": torch.ones(size, 2)}, directory / "model.safetensors")
    return directory


def save(run: Path, step: int, metric: float | None = None, **settings: Any) -> Path:
    store = CheckpointStore(run / "checkpoints", keep_last=9)
    with store.writing(step) as path:
        write_model(path, **settings)
    if metric is not None:
        store.record_metric(step, metric)
    return store.path(step)


def found(*arguments: str) -> list[Served]:
    return served_models(load_config(ServeConfig, with_sources([str(argument) for argument in arguments])))


def refusal(*arguments: str) -> str:
    with pytest.raises(TroupeError) as refused:
        found(*arguments)
    return str(refused.value)


def test_a_run_is_its_best_checkpoint_and_at_names_a_step(tmp_path):
    run = tmp_path / "mine"
    for step, metric in ((1, 0.2), (2, 0.9), (3, 0.5)):
        save(run, step, metric)
    served = found(run, f"{run}@3", f"{run}/checkpoints/step-000001")
    assert [(one.name, one.step) for one in served] == [("mine", 2), ("mine@3", 3), ("mine@1", 1)]


def test_the_same_name_twice_is_refused_with_the_way_out(tmp_path):
    save(tmp_path / "mine", 1)
    with pytest.raises(ConfigError, match="two models are called 'mine'; name them"):
        found(tmp_path / "mine", tmp_path / "mine" / "checkpoints" / "latest")


def test_a_followed_run_comes_first_and_keeps_its_directory(tmp_path):
    save(tmp_path / "mine", 7)
    other = write_model(tmp_path / "base")
    first, second = found(other, f"follow={tmp_path / 'mine'}")
    assert (first.name, first.step, first.run) == ("mine", 7, str(tmp_path / "mine"))
    assert (second.name, second.step, second.run) == ("base", None, None)


def test_the_length_is_the_models_and_a_longer_one_is_refused(tmp_path):
    model = write_model(tmp_path / "m")
    assert found(model)[0].max_length == 512
    assert found(model, "max_length=64")[0].max_length == 64
    assert "max_length (600) is more than" in refusal(model, "max_length=600")
    assert found(write_model(tmp_path / "long", max_position_embeddings=10**6))[0].max_length == 8192


def test_what_cannot_be_served_is_named_with_its_reason(tmp_path):
    whole = save(tmp_path / "mine", 1)
    (whole / "model.safetensors").write_bytes(b"short")
    assert "no complete checkpoint" in refusal(tmp_path / "mine")
    assert "the manifest says" in refusal(whole)
    assert "there is no model at" in refusal(tmp_path / "nothing")
    assert "no readable config.json" in refusal(tmp_path)
    assert "no weights" in refusal(write_model(tmp_path / "bare", weights=False))
    assert "which the installed vLLM does not know" in refusal(write_model(tmp_path / "a", architectures=["Mine"]))
    assert "is a reward model" in refusal(write_model(tmp_path / "b", architectures=["Qwen2ForSequenceClassification"]))
    assert "has no trained scalar head" in refusal(f"reward_model={write_model(tmp_path / 'e')}")
    assert "follow needs a run directory" in refusal(f"follow={write_model(tmp_path / 'c')}")
    assert "nothing would be served" in refusal()
    assert "there is no adapter_config.json" in refusal(
        f"models=[{{path: {write_model(tmp_path / 'd')}, adapters: {{x: {tmp_path}}}}}]"
    )
    assert "a number, not 'ten'" in refusal(f"{tmp_path}@ten")


def test_a_model_that_does_not_fit_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("troupe.serving.served_models.available_memory_gib", lambda: 1.5)
    model = write_model(tmp_path / "m")
    assert found(model)
    assert "2 time(s), need 2.0 GiB, and 1.5 GiB are available" in refusal(model, "min_replicas=2")


def test_a_followed_run_starts_with_the_newest_whole_checkpoint(tmp_path):
    run = tmp_path / "mine"
    for step, metric in ((1, 0.2), (2, 0.5), (3, 0.9)):
        save(run, step, metric)
    for step, starts_with in ((3, 2), (2, 1)):
        damage(run, step)
        (served,) = found(f"follow={run}")
        assert served.step == starts_with
    damage(run, 1)
    assert "step-000003: model.safetensors has another SHA-256" in refusal(f"follow={run}")


def damage(run: Path, step: int) -> None:
    weights = run / f"checkpoints/step-00000{step}/model.safetensors"
    weights.write_bytes(b"0" * weights.stat().st_size)


def test_another_byte_or_another_shape_is_not_a_later_step(tmp_path):
    first, second = save(tmp_path / "mine", 1), save(tmp_path / "mine", 2)
    wider = save(tmp_path / "mine", 3, size=8)
    require_whole(second, tensors=tensor_shapes(first))
    with pytest.raises(CheckpointError, match=r"of shape \[8, 2\] there and of shape \[4, 2\] in"):
        require_whole(wider, tensors=tensor_shapes(first))
    weights = bytearray((second / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (second / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="another SHA-256"):
        require_whole(second)
