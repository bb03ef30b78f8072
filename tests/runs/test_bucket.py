"""Objects in a real S3 server: what was stored is there whole, what was fetched is what was stored, and trouble is
one sentence.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import troupe.runs.bucket
from tests.s3 import S3Proxy, client, free_port, proxied
from troupe.errors import StorageError
from troupe.runs.bucket import Bucket, in_threads


@pytest.fixture
def proxy(s3: str, credentials: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    client(s3).create_bucket(Bucket="backups")
    with proxied(s3) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.address)
        yield found


def test_every_file_is_copied_under_the_prefix(tmp_path: Path, proxy: S3Proxy) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "charts" / "a.svg").write_text("<svg/>")
    (tmp_path / ".lock").write_text("")
    bucket = Bucket("s3://backups/copied/x/")
    assert bucket.upload(tmp_path) == 2
    assert bucket.sizes() == {"charts/a.svg": 6, "metrics.json": 2}
    assert bucket.read("charts/a.svg") == b"<svg/>"
    head = client(proxy.server).head_object(Bucket="backups", Key="copied/x/charts/a.svg")
    assert head["ContentType"] == "image/svg+xml"


@pytest.mark.parametrize("size", [0, 1, 5 * 2**20 + 1, 11 * 2**20])
def test_a_file_comes_back_bit_for_bit_in_parts_or_whole(
    size: int, tmp_path: Path, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(troupe.runs.bucket, "PART_BYTES", 5 * 2**20)
    content = os.urandom(size)
    (tmp_path / "weights").write_bytes(content)
    bucket = Bucket("s3://backups/parts")
    bucket.put(tmp_path / "weights", f"weights-{size}")
    bucket.get(f"weights-{size}", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    in_parts = [request for request in proxy.seen if "partNumber" in request.query]
    assert len(in_parts) == (size + 5 * 2**20 - 1) // (5 * 2**20) * (size > 5 * 2**20)


def test_the_beginning_of_a_growing_file_is_stored(tmp_path: Path, proxy: S3Proxy) -> None:
    (tmp_path / "lines").write_bytes(b"one\ntwo\nthr")
    bucket = Bucket("s3://backups/beginning")
    bucket.put(tmp_path / "lines", "lines", size=8)
    assert bucket.read("lines") == b"one\ntwo\n"


def test_a_store_that_keeps_less_than_it_was_sent_is_found_out(tmp_path: Path, proxy: S3Proxy) -> None:
    (tmp_path / "weights").write_bytes(b"0123456789")
    proxy.fault = lambda request: "truncate" if request.method == "PUT" else None
    with pytest.raises(StorageError, match="has 5 bytes of weights, or others than the 10 that were sent"):
        Bucket("s3://backups/short").put(tmp_path / "weights", "weights")


def test_what_was_changed_in_the_store_is_not_accepted(tmp_path: Path, proxy: S3Proxy) -> None:
    (tmp_path / "weights").write_bytes(b"0123456789")
    bucket = Bucket("s3://backups/damaged")
    bucket.put(tmp_path / "weights", "weights")
    stored = client(proxy.server).head_object(Bucket="backups", Key="damaged/weights")
    client(proxy.server).put_object(
        Bucket="backups", Key="damaged/weights", Body=b"0123456780", Metadata=stored["Metadata"]
    )
    with pytest.raises(StorageError, match="s3://backups/damaged/weights is damaged"):
        bucket.get("weights", tmp_path / "back")


def test_a_file_that_is_not_what_its_manifest_says_is_not_stored(tmp_path: Path, proxy: S3Proxy) -> None:
    (tmp_path / "weights").write_bytes(b"0123456789")
    with pytest.raises(StorageError, match="another SHA-256 than its manifest says"):
        Bucket("s3://backups/x").put(tmp_path / "weights", "weights", sha256="0" * 64)


def test_an_answer_that_breaks_off_is_asked_for_again(tmp_path: Path, proxy: S3Proxy) -> None:
    content = os.urandom(200_000)
    (tmp_path / "weights").write_bytes(content)
    bucket = Bucket("s3://backups/broken")
    bucket.put(tmp_path / "weights", "weights")
    once = iter(["truncate"])
    proxy.fault = lambda request: next(once, None) if request.method == "GET" else None
    bucket.get("weights", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_places_under_and_above_an_address_are_named_and_keyed_alike(proxy: S3Proxy, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    bucket = Bucket("s3://backups/team/runs/")
    below = bucket.at("grpo").at("logs")
    assert (bucket.address, below.address) == ("s3://backups/team/runs", "s3://backups/team/runs/grpo/logs")
    below.put(tmp_path / "x", "a.log")
    assert bucket.read("grpo/logs/a.log") == below.read("a.log") == b"x"
    assert below.above(2).address == bucket.address
    assert "team/runs/grpo/logs/a.log" in below.above(4).sizes()
    assert (below.above(4).address, Bucket("s3://backups").at("top").address) == ("s3://backups", "s3://backups/top")
    assert bucket.sizes("grpo/logs/a.lo") == {"grpo/logs/a.log": 1}  # what begins with it
    assert below.read("a.log", first=5) == b"x"
    assert below.read("b.log") is None
    (tmp_path / "empty").write_bytes(b"")
    below.put(tmp_path / "empty", "empty")
    assert below.read("empty", first=5) is None  # a range of nothing


def test_more_objects_are_deleted_than_one_request_takes(proxy: S3Proxy, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    bucket = Bucket("s3://backups/many")
    for key in ("0000", "1999"):
        bucket.put(tmp_path / "x", key)
    bucket.delete(f"{number:04d}" for number in range(2000))  # those that are not there count as removed
    assert bucket.sizes() == {}
    assert len([request for request in proxy.seen if "delete" in request.query]) == 2
    bucket.delete([])


def test_a_transfer_that_fails_ends_with_those_that_had_begun_and_begins_no_other() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def transfer(number: int) -> None:
        begun.append(number)
        time.sleep(0.02)
        if number == 2:
            raise StorageError("the store is full")
        ended.append(number)

    with pytest.raises(StorageError, match="the store is full"):
        in_threads([functools.partial(transfer, number) for number in range(100)])
    assert sorted(begun) == sorted([*ended, 2])
    assert len(begun) < 50
    begun.clear()
    in_threads([functools.partial(begun.append, number) for number in range(9)])
    assert sorted(begun) == list(range(9))
    in_threads([])


# -- what cannot work ------------------------------------------------------------------------------------------


def test_a_bucket_that_can_be_used_passes_the_check_and_keeps_nothing_of_it(proxy: S3Proxy) -> None:
    bucket = Bucket("s3://backups/checked")
    bucket.check()
    assert bucket.sizes() == {}


REFUSALS = {
    "missing": ("s3://no-such-bucket/x", "", "", "there is no bucket 'no-such-bucket' at http://127.0.0.1"),
    "forbidden": (
        "s3://backups/x",
        "HEAD PUT GET",
        "403",
        "refuses these credentials .*they need s3:ListBucket, s3:GetObject",
    ),
    "elsewhere": (
        "s3://backups/x",
        "HEAD PUT GET",
        "301 eu-west-3",
        "'backups' is in region eu-west-3, not us-east-1; set the region",
    ),
    "read-only": ("s3://backups/x", "PUT", "403", "refuses these credentials"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bucket_that_cannot_be_used_is_one_sentence(case: str, proxy: S3Proxy) -> None:
    address, methods, answer, sentence = REFUSALS[case]
    proxy.fault = lambda request: answer if request.method in methods.split() else None
    with pytest.raises(StorageError, match=sentence) as refused:
        Bucket(address).check()
    assert str(refused.value).startswith(f"{address} cannot be used: ")
    assert len(str(refused.value).splitlines()) == 1


def test_a_store_that_is_down_is_one_sentence(credentials: None) -> None:
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:\d+ does not answer .*check the address"):
        Bucket("s3://backups/x", endpoint_url=f"http://127.0.0.1:{free_port()}").check()


@pytest.mark.parametrize("silent", ["before it answers", "while it is sent to"])
def test_a_store_that_stalls_is_given_up(
    silent: str, tmp_path: Path, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(troupe.runs.bucket, "ATTEMPTS", 1)
    (tmp_path / "weights").write_bytes(bytes(12 * 2**20))
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # it takes connections, and reads nothing
        proxy.fault = lambda request: "stall"
        endpoint = proxy.address if silent == "before it answers" else f"http://127.0.0.1:{deaf.getsockname()[1]}"
        bucket = Bucket("s3://backups/x", endpoint_url=endpoint, timeout_s=0.5)
        started = time.monotonic()
        with pytest.raises(StorageError, match="does not answer"):
            bucket.put(tmp_path / "weights", "weights")
        assert time.monotonic() - started < 30
    proxy.calm()


def test_missing_credentials_are_named_before_anything_is_copied(
    tmp_path: Path, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        troupe.runs.bucket, "_session", troupe.runs.bucket._session.__wrapped__
    )  # a process that has found none yet
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="needs credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Bucket("s3://backups/x")
