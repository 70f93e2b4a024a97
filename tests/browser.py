"""A real browser without a screen, for the pages that ours makes and serves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
BROWSER_S = 60.0  # to start on a busy machine, for the first time


class Browser:
    """A headless Chromium, spoken to over two pipes: Chrome DevTools Protocol, one JSON object ended by NUL."""

    def __init__(self, path: str, profile: Path) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # It reads descriptor 3 and writes 4, whatever numbers the pipes have here.
        there = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (to_read, to_write)]
        hop = "import os, sys; _, r, w, *do = sys.argv; os.dup2(int(r), 3); os.dup2(int(w), 4); os.execv(do[0], do)"
        # A sandbox of its own is what Chromium cannot make as root, nor in most containers.
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", hop, *map(str, there), path, *flags, f"--user-data-dir={profile}"],
            pass_fds=there, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "HOME": str(profile), "XDG_CONFIG_HOME": str(profile)},
        )  # fmt: skip
        for each in (to_read, to_write, *there):
            os.close(each)
        self._deadline = Deadline.after(BROWSER_S)
        self._data = b""
        self._count = 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Return when it has a page, of which it tells us."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        self._count += 1
        order = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(order).encode() + b"\0")
        while (message := self._next()).get("id") != self._count:
            self.events.append(message)
        assert "result" in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, page: str, width: int = 1200, scheme: str = "light") -> None:
        """Load a page, by its address, on a screen of this width, in light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """What an expression in the page gives; of a promise, what it comes to."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", **asked)["result"].get("value")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(LIMIT_S)
        os.close(self._to)
        os.close(self._from)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._data:
            readable, _, _ = select.select([self._from], [], [], self._deadline.remaining_s())
            assert readable, "the browser said nothing before the deadline"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser ended"
            self._data += piece
        line, _, self._data = self._data.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@contextlib.contextmanager
def a_browser(profile: Path) -> Iterator[Browser]:
    """A browser with a page; the test is skipped where there is none on this machine."""
    if BROWSER is None:
        pytest.skip(f"no browser on the PATH: looked for {', '.join(BROWSERS)}")
    with contextlib.closing(Browser(BROWSER, profile)) as browser:
        browser.begin()
        yield browser
