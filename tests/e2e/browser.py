"""Drive a headless Chromium by its DevTools protocol, without network."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

TIMEOUT_S = 90.0


def find_chromium() -> str | None:
    """Return the browser's path, if one is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


class Browser:
    """One tab. Keeps what the page asked for, and every error it reported."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._events: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            message = self._receive(deadline)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=max(0.01, deadline - time.monotonic())))
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))
        elif method:
            self._events.append(method)
        return message

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Set the size of the window in CSS pixels."""
        scale = 3 if is_phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)

    def use_media(self, *, scheme: str = "light", medium: str = "") -> None:
        """Choose the colours that the reader prefers, and the medium: `print` or, empty, the screen."""
        self.call(
            "Emulation.setEmulatedMedia", media=medium, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def open(self, path: Path) -> None:
        """Open a file, wait until it is loaded and drawn."""
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + TIMEOUT_S
        while "Page.loadEventFired" not in self._events:
            self._receive(deadline)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked to be drawn is drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited, in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click the middle of an element, with the mouse."""
        x, y, width, height = self.box(selector)
        self.drag(x + width / 2, y + height / 2, x + width / 2, y + height / 2)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Return left, top, width and height of an element in the window, scrolled to be in its middle."""
        left, top, width, height = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        return left, top, width, height

    def drag(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Press the left button at one place and release it at another, in pixels of the window."""
        where = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **where)
        if (x, y) != (to_x, to_y):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=to_x, y=to_y, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=to_y, **where)
        self.settle()

    def take_picture(self, *, whole: bool = True) -> bytes:
        """Return the page as PNG: all of it, or what the window shows."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])


class Page:
    """A page in the browser, to be read and waited for."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def run(self, expression: str) -> Any:
        """Return the value of an expression."""
        return self.browser.evaluate(expression)

    def wait(self, expression: str) -> None:
        """Wait until an expression holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.run(f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"):
            assert time.monotonic() < deadline, (expression, self.browser.errors, self.run("document.body.innerText"))
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """Return what an element shows."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))


def serve_browser(factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield a browser for a fixture; skip the tests where none is installed."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: install chromium, or google-chrome, to look at pages")
    with open_browser(program, factory.mktemp("browser")) as browser:
        yield browser


@contextlib.contextmanager
def open_browser(program: str, folder: Path) -> Iterator[Browser]:
    """Start a browser that resolves no host name, with its profile in `folder`; it is gone at the end."""
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0",
        f"--user-data-dir={folder / 'profile'}", "about:blank",
    ]  # fmt: skip
    log = folder / "chromium.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        port = _wait_for_port(process, log)
        with connect(f"ws://127.0.0.1:{port[0]}{port[1]}", max_size=None, proxy=None, compression=None) as root:
            tab = Browser.__new__(Browser)
            tab._socket, tab._number, tab._events, tab.requests, tab.errors = root, 0, [], [], []
            targets = tab.call("Target.getTargets")["targetInfos"]
            page = next(each["targetId"] for each in targets if each["type"] == "page")
        url = f"ws://127.0.0.1:{port[0]}/devtools/page/{page}"
        with connect(url, max_size=None, proxy=None, compression=None) as socket:
            yield Browser(socket)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(TIMEOUT_S)


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        found = re.search(r"DevTools listening on ws://[^:]+:(\d+)(\S+)", text)
        if found:
            return found[1], found[2]
        if process.poll() is not None:
            raise RuntimeError(f"the browser ended: {text[-500:]}")
        time.sleep(0.02)
    raise TimeoutError(f"the browser opened no port: {log.read_text(errors='replace')[-500:]}")
