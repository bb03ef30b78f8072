"""An upload is one commit of all files to a hub; what fails says so without the token. The hub here is a small
server.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from troupe.errors import ConfigError
from troupe.runs.hub import require_token, upload
from troupe.secrets import public_text

SECRET = "hf_not_a_token_1234567890"


class Hub(BaseHTTPRequestHandler):
    """The calls of an upload of small files: make the repository, ask how to send, look at the card, commit."""

    asked: list[tuple[str, str | None]]
    commits: list[list[dict[str, Any]]]
    status: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if not body and self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size).decode())
                self.rfile.readline()
            self.rfile.readline()
            body = "".join(parts)
        self.asked.append((self.path, self.headers.get("Authorization")))
        address = f"http://{self.headers['Host']}/somebody/something"
        if self.path.endswith("/repos/create"):
            self._answer({"url": address})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif self.path.endswith("/validate-yaml"):
            self._answer({"errors": [], "warnings": []})
        elif "/commit/" in self.path:
            self.commits.append([json.loads(line) for line in body.splitlines()])
            self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": f"{address}/commit/{'1' * 40}"})
        else:
            self._answer({}, 404)

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        self._answer({"id": "somebody/something", "sha": "0" * 40, "siblings": []})

    def _answer(self, content: Any, status: int | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(status or self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("ThisHub", (Hub,), {"asked": [], "commits": [], "status": 200})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("# A model")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path


def test_all_files_arrive_in_one_commit_with_the_token(hub: type[Hub], directory: Path) -> None:
    url = upload(directory, "somebody/something", private=True)
    assert url.endswith("/somebody/something/commit/" + "1" * 40)
    (commit,) = hub.commits
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in commit if line["key"] == "file"
    }
    assert files == {"README.md": b"# A model", "base/config.json": b"{}"}
    assert {token for path, token in hub.asked if "/api/" in path} == {f"Bearer {SECRET}"}


def test_a_hub_that_refuses_is_told_without_the_token(hub: type[Hub], directory: Path) -> None:
    hub.status = 403
    with pytest.raises(
        ConfigError, match=r"is complete, but somebody/something could not be written on the hub: .*403"
    ) as told:
        upload(directory, "somebody/something", private=True)
    assert SECRET not in str(told.value)
    assert hub.commits == []


def test_a_login_of_the_hubs_own_is_honoured_and_masked(
    hub: type[Hub], directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    file = tmp_path_factory.mktemp("login") / "token"
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(file))
    with pytest.raises(ConfigError, match=r"push needs a token .* or `hf auth login`"):
        require_token()
    file.write_text("hf_of_the_file_1234567890\n")
    require_token()
    upload(directory, "somebody/something", private=True)
    assert {token for path, token in hub.asked if "/commit/" in path} == {"Bearer hf_of_the_file_1234567890"}
    assert public_text("its token is hf_of_the_file_1234567890") == "its token is $HF_TOKEN"
