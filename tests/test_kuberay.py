"""The manifests under kuberay/, as far as they can be judged without Kubernetes: KubeRay's own definitions, the files
and recipes that they name, and whether what they ask for is enough."""

from __future__ import annotations

import ast
import copy
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from troupe.actors.placement import placement_table
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig
from troupe.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
DEFINITIONS = yaml.safe_load((ROOT / "tests/fixtures/kuberay.yaml").read_text())["$defs"]
KINDS = {"train.yaml": "RayJob", "serve.yaml": "RayService"}


def manifest(file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "kuberay" / file).read_text())


def check(document: dict[str, Any]) -> None:
    schema = {"$ref": f"#/$defs/{document['kind']}", "$defs": DEFINITIONS}
    jsonschema.Draft202012Validator(schema).validate(document["spec"])


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"].get("rayClusterSpec") or document["spec"]["rayClusterConfig"]


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(document)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("file", KINDS)
def test_the_manifest_is_what_kuberay_defines(file):
    document = manifest(file)
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", KINDS[file])
    check(document)


@pytest.mark.parametrize("file", KINDS)
def test_a_misspelt_field_would_be_found_at_every_depth(file):
    for change in (
        lambda document: document["spec"].update(shutdownAfterJobFinish=True),
        lambda document: cluster_of(document).update(rayversion="2.60.0"),
        lambda document: pods(document)[1].update(volume=[]),
        lambda document: pods(document)[0]["containers"][0].update(envfrom=[]),
        lambda document: pods(document)[0]["containers"][0]["volumeMounts"][0].update(path="/x"),
        lambda document: cluster_of(document)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ):
        document = copy.deepcopy(manifest(file))
        change(document)
        with pytest.raises(jsonschema.ValidationError):
            check(document)


@pytest.mark.parametrize("file", KINDS)
def test_pods_have_the_locked_ray_a_token_the_secrets_and_the_shared_files(file):
    document, shared = manifest(file), manifest("shared.yaml")
    assert cluster_of(document)["rayVersion"] == ray.__version__
    assert cluster_of(document)["authOptions"] == {"mode": "token"}
    assert shared["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(document):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == shared["metadata"]["name"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert container["envFrom"][0]["secretRef"]["name"] == "troupe-env"
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()


def gpus_of(document: dict[str, Any], count: str) -> int:
    groups = cluster_of(document)["workerGroupSpecs"]
    sizes = [pod["containers"][0]["resources"]["limits"] for pod in pods(document)[1:]]
    return sum(group[count] * int(size["nvidia.com/gpu"]) for group, size in zip(groups, sizes, strict=True))


def test_the_job_is_one_of_ours_with_a_recipe_that_fits_the_pods():
    document = manifest("train.yaml")
    words = shlex.split(document["spec"]["entrypoint"])
    assert words[:5] == ["cd", "/opt/troupe", "&&", "python", "jobs/train_grpo.py"]
    config = load_config(GRPOConfig, [str(ROOT / words[5]), *words[6:]])
    mounts = {mount["mountPath"] for mount in pods(document)[1]["containers"][0]["volumeMounts"]}
    assert any(config.run.directory.startswith(mount) for mount in mounts)
    bundles = {seat.bundle: seat.bundle_gpus for seat in placement_table(config, device="cuda")}
    assert sum(bundles.values()) <= gpus_of(document, "replicas")


def test_the_service_names_an_application_and_models_of_ours():
    document = manifest("serve.yaml")
    served = yaml.safe_load(document["spec"]["serveConfigV2"])
    (application,) = served["applications"]
    module, _, function = application["import_path"].partition(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    config = ServeConfig.model_validate(application["args"])
    assert len(config.models) * config.min_replicas <= gpus_of(document, "minReplicas")
    assert len(config.models) * (config.max_replicas or 1) <= gpus_of(document, "maxReplicas")


def test_the_manifests_name_the_image_that_the_documentation_builds():
    built = (ROOT / "docs/cluster.md").read_text()
    for file in KINDS:
        (image,) = {pod["containers"][0]["image"] for pod in pods(manifest(file))}
        assert f"docker build --build-arg STACK=gpu -t {image} ." in built


def test_the_service_does_not_start_without_a_token(monkeypatch):
    from troupe.serving.builder import application

    monkeypatch.delenv("TROUPE_API_KEY", raising=False)
    served = yaml.safe_load(manifest("serve.yaml")["spec"]["serveConfigV2"])
    with pytest.raises(ConfigError, match="TROUPE_API_KEY must be set for every pod"):
        application(served["applications"][0]["args"])
