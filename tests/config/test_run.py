"""A run's own settings: where it is, which trackers and stores it has, and what a name may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from troupe.config.grpo import GRPOConfig
from troupe.config.loader import dump_config, load_config
from troupe.config.run import CallLogConfig, CheckpointConfig, RunConfig, StorageConfig, WatchConfig, check_address
from troupe.errors import ConfigError


def test_a_run_lies_under_its_name_in_its_directory() -> None:
    assert RunConfig().path == Path("runs/quickstart")
    assert RunConfig(name="a b", directory="/data/runs").path == Path("/data/runs/a b")


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", ".", ".."])
def test_a_name_that_would_leave_the_directory_or_hide_in_it_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="a run's name is one directory name"):
        RunConfig(name=name)


@pytest.mark.parametrize("address", ["s3://bucket", "s3://bucket/", "s3://bucket/a/b"])
def test_an_address_of_a_bucket_is_returned_as_it_is(address: str) -> None:
    assert check_address(address, "url") == address


@pytest.mark.parametrize("address", ["", "bucket/x", "s3:/bucket", "s3://", "s3:///x", "https://bucket/x", "S3://b"])
def test_another_address_is_refused_with_the_form_that_is_meant(address: str) -> None:
    with pytest.raises(ValueError, match="upload is written s3://bucket/prefix"):
        check_address(address, "upload")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"url": "gs://bucket/x"}, "url is written s3://bucket/prefix"),
        ({"endpoint_url": "store:9000"}, r"endpoint_url is written https://host\[:port\]"),
        ({"endpoint_url": "ftp://store"}, r"endpoint_url is written https://host\[:port\]"),
        ({"endpoint_url": "https://"}, r"endpoint_url is written https://host\[:port\]"),
        ({"endpoint_url": "https://key:word@store"}, "endpoint_url holds no credentials; set AWS_ACCESS_KEY_ID"),
        ({"keep": 0}, "greater than or equal to 1"),
        ({"queue": 0}, "greater than or equal to 1"),
        ({"timeout_s": 0}, "greater than 0"),
    ],
)
def test_a_store_that_cannot_be_reached_by_its_settings_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        StorageConfig(**given)


def test_a_store_needs_nothing_and_an_at_sign_may_stand_in_a_path() -> None:
    assert StorageConfig().url is None
    assert StorageConfig(url="s3://b/p", endpoint_url="http://127.0.0.1:9000/a@b").every is None


@pytest.mark.parametrize(
    ("section", "given"),
    [
        (CallLogConfig, {"fraction": 1.5}),
        (CallLogConfig, {"console_fraction": -0.1}),
        (CheckpointConfig, {"keep_last": 0}),
        (CheckpointConfig, {"every": -1}),
        (WatchConfig, {"metrics_port": 65536}),
        (WatchConfig, {"timeline_every": -1}),
        (RunConfig, {"max_restarts": -1}),
        (RunConfig, {"resume": "yes"}),
        (RunConfig, {"trackers": ["mlflow"]}),
    ],
)
def test_shares_counts_and_ports_have_bounds(section: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section(**given)


def test_what_a_recipe_says_of_its_run_is_what_is_saved_with_it(tmp_path: Path) -> None:
    arguments = ["run.name=mine", f"run.directory={tmp_path}", "run.trackers=[tensorboard]", "run.storage.url=s3://b/p"]
    config = load_config(GRPOConfig, [*arguments, "run.watch.timeline_steps=[3, 5]", "run.wandb.tags=[a, b]"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    again = load_config(GRPOConfig, [str(file)])
    assert again.run == config.run
    assert again.run.path == tmp_path / "mine"
    with pytest.raises(ConfigError, match=r"^run\.name: a run's name is one directory name"):
        load_config(GRPOConfig, [str(file), "run.name=a/b"])
