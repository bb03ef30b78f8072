"""A real browser for tests: Debian's chromium without a window, driven through the DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
PATIENCE_S = 30.0
"""For a machine that is busy with other tests."""


class Page:
    """One page of the browser; what it throws or logs as an error is kept in `errors`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self._hear(message)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"])[:500])
        elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(f"{event['params']['entry']['text']} {event['params']['entry'].get('url', '')}")

    def js(self, expression: str) -> Any:
        """The value of an expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """The expression's value, once it is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := self.js(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}; the page says: {self.text()[-800:]}"
            time.sleep(0.03)
        return value

    def open(self, url: str) -> None:
        """Load a page anew, with nothing of the one before."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && typeof answers !== 'undefined'")

    def text(self) -> str:
        return str(self.js("document.body.innerText"))

    def size(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(directory: Path) -> Iterator[Page]:
    """A page of a browser that keeps its profile in `directory`."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-extensions", "--disable-dev-shm-usage"]
    with subprocess.Popen(
        [*command, *quiet, f"--user-data-dir={directory}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            place = directory / "DevToolsActivePort"
            deadline = time.monotonic() + PATIENCE_S
            while not (place.exists() and place.read_text().strip()):
                assert process.poll() is None, f"{CHROMIUM} ended with {process.returncode}"
                assert time.monotonic() < deadline, f"{CHROMIUM} did not start"
                time.sleep(0.03)
            port = place.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as listed:
                address = next(tab["webSocketDebuggerUrl"] for tab in json.load(listed) if tab["type"] == "page")
            with connect(address, max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
