"""The two cluster files as Ray's own launcher reads them: its defaults, its schema, its rules, and our promises."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler import sdk

ROOT = Path(__file__).resolve().parents[1]
FILES = ["cluster.yaml", "cluster.local.yaml"]


def read(file: str) -> dict:
    return yaml.safe_load((ROOT / file).read_text())


def prepared(cluster: dict) -> dict:
    """What `ray up` makes of a file before it touches a machine; raises where it would refuse the file."""
    if cluster["provider"]["type"] == "local":
        return sdk.bootstrap_config(cluster, no_config_cache=True)
    filled = sdk.fillout_defaults(cluster)  # bootstrap_config would ask AWS
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(filled, schema)
    return filled


@pytest.mark.parametrize("file", FILES)
def test_ray_up_accepts_the_file(file):
    assert prepared(read(file))["cluster_name"].startswith("troupe")


@pytest.mark.parametrize("file", FILES)
def test_a_misspelt_key_would_be_refused(file):
    with pytest.raises(jsonschema.ValidationError, match="ssh_users"):
        prepared({**read(file), "auth": {"ssh_users": "ubuntu"}})


def test_every_worker_of_the_local_file_belongs_to_the_cluster():
    cluster = prepared(read("cluster.local.yaml"))
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


def test_the_aws_file_obeys_the_launchers_rules():
    """What `ray up` checks beyond the schema, before it asks AWS."""
    cluster = read("cluster.yaml")
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert sum(node_type.get("min_workers", 0) for node_type in types.values()) <= cluster["max_workers"]
    assert all(node_type.get("max_workers", 0) <= cluster["max_workers"] for node_type in types.values())
    assert {node_type["node_config"]["InstanceType"] for node_type in types.values()} == {"p5.48xlarge"}


@pytest.mark.parametrize("file", FILES)
def test_a_cluster_asks_for_a_token_and_shows_its_dashboard_to_itself_only(file):
    cluster = read(file)
    starts = [
        command
        for command in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in cluster["file_mounts"].values()


@pytest.mark.parametrize("file", FILES)
def test_the_machines_get_what_make_install_and_the_jobs_need(file):
    mounts = {Path(there).name: here for there, here in read(file)["file_mounts"].items()}
    packages = ["troupe", "actors", "rewards", "serving", "jobs", "configs"]
    for name in [*packages, "Makefile", "pyproject.toml", "install.py", "requirements"]:
        assert mounts[name] == name
        assert (ROOT / name).exists(), name
    assert any("make install" in command for command in read(file)["setup_commands"])
