"""Which role gets which device, and what a Ray that a job starts for itself needs of the machine."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from troupe.actors.placement import (
    Cluster,
    RankPlacement,
    bring_token,
    placement_table,
    policy_placement,
    private_directory,
    session_directory,
)
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.loader import load_config
from troupe.config.models import GeneratorConfig, PlacementConfig
from troupe.config.supervised import SFTConfig
from troupe.errors import ConfigError
from troupe.hardware import LOOPBACK, set_up_generator

Place = tuple[str, int, int, int, float]


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("home", ["/proc", "/proc/none"])
def test_where_the_home_directory_cannot_be_written_a_run_has_a_token_of_its_own(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    bring_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("kept", [True, False])
def test_a_home_directory_keeps_the_token_that_ray_reads_or_writes(monkeypatch, tmp_path: Path, kept: bool):
    monkeypatch.setenv("HOME", str(tmp_path))
    if kept:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("mine")
    bring_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""


def test_a_token_that_was_given_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    bring_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "given"


# -- the table -----------------------------------------------------------------------------------------------------


def places(table: list[RankPlacement]) -> list[Place]:
    return [(each.role, each.rank, each.bundle, each.bundle_gpus, each.num_gpus) for each in table]


ENGINES = GeneratorConfig(num_engines=2, tensor_parallel_size=2)


def test_apart_every_rank_has_a_bundle_of_its_own_and_an_engine_one_as_wide_as_itself() -> None:
    table = policy_placement(2, ENGINES, others={"critic": 2, "reference": 1}, colocated=False, gpu=1)
    assert places(table) == [
        ("policy", 0, 0, 1, 1),
        ("policy", 1, 1, 1, 1),
        ("generator", 0, 2, 2, 2),
        ("generator", 1, 3, 2, 2),
        ("critic", 0, 4, 1, 1),
        ("critic", 1, 5, 1, 1),
        ("reference", 0, 6, 1, 1),
    ]


def test_together_engines_sleep_on_the_policys_gpus_beside_the_roles_that_work_in_turn() -> None:
    table = policy_placement(4, ENGINES, others={"reference": 2}, colocated=True, gpu=1)
    assert places(table) == [
        *[("policy", rank, rank, 1, 0.3) for rank in range(4)],
        ("generator", 0, 0, 1, 0),  # on GPUs 0 and 1
        ("generator", 1, 2, 1, 0),  # on GPUs 2 and 3
        ("reference", 0, 0, 1, 0.2),
        ("reference", 1, 1, 1, 0.2),
    ]


def test_on_a_cpu_bundles_only_say_where_and_none_takes_a_gpu() -> None:
    for colocated in (True, False):
        table = policy_placement(2, ENGINES, others={"reference": 3}, colocated=colocated, gpu=0)
        assert {(each.bundle_gpus, each.num_gpus) for each in table} == {(0, 0)}
        assert len(table) == 7


def test_no_gpu_is_given_twice_whatever_the_numbers_of_ranks() -> None:
    """And what cannot be shared is refused, since Ray would wait for it without end."""
    refused = []
    for policy, critic, reference, scores in itertools.product((1, 2, 3), repeat=4):
        others = {"critic": critic, "reference": reference, "reward_model": scores}
        try:
            table = policy_placement(policy, None, others=others, colocated=True, gpu=1)
        except ConfigError:
            refused.append(max(others.values()) - policy)
            continue
        for bundle in range(policy):
            assert sum(each.num_gpus for each in table if each.bundle == bundle) <= 1 + 1e-9
    assert min(refused) > 0  # roles with at most as many ranks as the policy always share
    everything = {"critic": 1, "reference": 1, "reward_model": 1, "perplexity": 1}
    assert len(policy_placement(1, None, others=everything, colocated=True, gpu=1)) == 5  # just fits


def test_what_cannot_share_is_one_sentence_with_the_numbers_and_the_remedy() -> None:
    with pytest.raises(
        ConfigError, match=r"\(2 x 2\) on the policy's GPUs, of which there are 3 .*placement.mode: sep"
    ):
        policy_placement(3, ENGINES, colocated=True, gpu=1)
    with pytest.raises(
        ConfigError, match=r"critic.num_ranks on the policy's .* take 1\.10 of it; set critic.num_ranks to 1"
    ):
        policy_placement(1, None, others={"critic": 4}, colocated=True, gpu=1)
    assert policy_placement(1, None, others={"critic": 4}, colocated=True, gpu=0)
    lagging = load_config(GRPOConfig, ["rollout.max_lag=2"])
    assert placement_table(lagging, device="cpu")
    with pytest.raises(ConfigError, match=r"rollout.max_lag \(2\) lets generation and training overlap"):
        placement_table(lagging, device="cuda")


def test_the_roles_of_a_recipe_are_those_that_compute_something() -> None:
    def roles(recipe: type, *settings: str) -> list[str]:
        return [each.role for each in placement_table(load_config(recipe, list(settings)), device="cuda")]

    assert roles(GRPOConfig) == ["policy", "generator"]
    assert roles(GRPOConfig, "algorithm.kl.coef=0.1") == ["policy", "generator", "reference"]
    assert roles(GRPOConfig, "rewarder.num_workers=2") == ["policy", "generator", "rewarder", "rewarder"]
    assert roles(PPOConfig)[:3] == ["policy", "generator", "critic"]
    assert roles(SFTConfig) == ["policy"]


def test_the_table_for_people_names_this_process_where_everything_runs_in_it() -> None:
    stage = Cluster(PlacementConfig(backend="inline"))
    stage.reserve(placement_table(GRPOConfig(), device="cpu"), 1)
    assert [(row["role"], row["place"], row["machine"], row["device"]) for row in stage.rows()] == [
        ("policy", "this process", "", "CPU"),
        ("generator", "this process", "", "CPU"),
    ]
    stage.require_shared(Path("/nowhere"))  # one machine sees what it sees
    assert stage.metrics_addresses() == []
    stage.close()


def test_a_run_in_this_process_leaves_its_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    before = dict(os.environ)
    stage = Cluster(PlacementConfig(backend="inline"))
    set_up_generator(0, 1, None, LOOPBACK)
    assert os.environ["VLLM_LOGGING_LEVEL"] == "ERROR"
    stage.close()
    assert dict(os.environ) == before


def test_what_dead_runs_left_is_removed_and_what_others_have_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f"troupe-{dead.pid}-a", f"troupe-{os.getpid()}-b", "troupe-sandbox-c", "other-1-d"):
        (tmp_path / name / "sockets").mkdir(parents=True)
    made = private_directory()
    assert made.is_dir()
    assert made.stat().st_mode & 0o077 == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"troupe-{os.getpid()}-b",
        "troupe-sandbox-c",
        "other-1-d",
        made.name,
    }


@pytest.mark.parametrize(("private", "fits"), [("/tmp/troupe-4194304-abcdefgh", True), (f"/scratch/{'x' * 60}", False)])
def test_rays_sessions_are_private_where_their_sockets_have_room_and_nobody_chose(
    monkeypatch: pytest.MonkeyPatch, private: str, fits: bool
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert session_directory(Path(private)) == (f"{private}/ray" if fits else None)
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    assert session_directory(Path(private)) is None
