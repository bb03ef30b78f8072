"""A directory copied to an S3-compatible store: a real server on loopback gets the files, and what cannot work is said."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.upload import Bucket


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What the store was given, by path; the bucket `locked` refuses."""
    given: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if self.headers.get("Expect") == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            given[self.path.partition("?")[0]] = body
            self.send_response(403 if "locked" in self.path else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }.items():
        monkeypatch.setenv(name, value)
    yield given
    server.shutdown()
    server.server_close()


def test_every_file_is_copied_under_the_prefix(tmp_path: Path, store: dict[str, bytes]) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "charts" / "a.svg").write_text("<svg/>")
    (tmp_path / ".lock").write_text("")
    assert Bucket("s3://backups/runs/x/").upload(tmp_path) == 2
    assert store == {"/backups/runs/x/metrics.json": b"{}", "/backups/runs/x/charts/a.svg": b"<svg/>"}


def test_a_store_that_refuses_is_one_sentence(tmp_path: Path, store: dict[str, bytes]) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"could not be copied to s3://locked .*403.*everything is in"):
        Bucket("s3://locked").upload(tmp_path)


def test_missing_credentials_are_named_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="needs credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Bucket("s3://backups/x")
