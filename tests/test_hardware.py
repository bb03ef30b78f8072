"""What a worker process is told of its machine and of its peers."""

from __future__ import annotations

import os

import psutil
import pytest
import torch

from troupe.hardware import hardware, set_up_process, use_interface_of

LOOPBACK = next(
    name
    for name, addresses in psutil.net_if_addrs().items()
    if "127.0.0.1" in [interface.address for interface in addresses]
)


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    """The process as it was: its environment and its number of threads."""
    threads, before = torch.get_num_threads(), dict(os.environ)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.skipif(hardware().device == "cuda", reason="a rank with a GPU sees one device and no neighbours")
def test_ranks_count_the_peers_on_their_own_machine():
    """Three ranks on two machines, the third beside the first: DeepSpeed shares memory only where all ranks could."""
    hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    told = []
    for rank in range(3):
        set_up_process(rank=rank, hosts=hosts, master_port=29500)
        told.append([os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR")])
        assert torch.get_num_threads() == max(1, hardware().num_cores // hosts.count(hosts[rank]))
    assert told == [
        ["0", "3", "0", "2", "10.0.0.1"],
        ["1", "3", "0", "1", "10.0.0.1"],
        ["2", "3", "1", "2", "10.0.0.1"],
    ]


def test_a_process_on_loopback_keeps_its_collectives_there():
    set_up_process()
    assert os.environ["GLOO_SOCKET_IFNAME"] == LOOPBACK


def test_an_interface_that_was_chosen_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    use_interface_of("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


def test_an_address_of_no_interface_changes_nothing():
    use_interface_of("192.0.2.250")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
