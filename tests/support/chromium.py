"""Headless Chromium over a pipe: opens a page, and keeps what it complained about and asked the network for.

The DevTools protocol runs over two file descriptors (--remote-debugging-pipe), so no port is opened and no package is
needed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAM = Path("/usr/bin/chromium")
ENABLE = "Debian: apt-get install chromium; then: pytest -m browser"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars",
    "--no-default-browser-check", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip

# Every text that lies on a background it may be hard to read on, by WCAG's contrast; 4.5 is its AA limit.
CONTRAST = """
(() => {
  const light = c => { const v = c / 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = text => { const [r, g, b] = rgb(text).map(light); return .2126 * r + .7152 * g + .0722 * b; };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  const found = {};
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    if (svg ? e.tagName !== "text" : ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const ink = luminance(svg ? style.fill : style.color);
    found[svg ? style.fill : style.color] = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  }
  return found;
})()
"""


class Page:
    """One tab; `complaints` are console messages and log entries, `requests` the addresses it asked for."""

    def __init__(self, browser: Browser, session: str, *, online: bool) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")
        network = {"offline": not online, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", **network)

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, self._session, **params)

    def window(self, width: int, height: int, scheme: str = "light", media: str = "") -> None:
        """Set the window's size and colour scheme, or print instead of a screen."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def open(self, address: str) -> None:
        """Load an address and wait until it is done."""
        self._browser.seen.clear()
        self.call("Page.navigate", url=address)
        self._browser.wait("Page.loadEventFired", self._session)
        self.wait()

    def wait(self, ms: int = 100) -> None:
        """Let time pass, and keep what happened."""
        self.run(f"new Promise(done => setTimeout(done, {ms}))")
        for event in self._browser.seen:
            self._keep(event["method"], event["params"])
        self._browser.seen.clear()

    def _keep(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(params["exceptionDetails"]["text"])

    def run(self, script: str) -> Any:
        """Return what a script of the test's own gives; the page's policy does not hold for it."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def picture(self, path: Path) -> bytes:
        """Write the whole page as a PNG, however long it is."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, fromSurface=True)
        data = base64.b64decode(shot["data"])
        path.write_bytes(data)
        return data


class Browser:
    """A running Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self.process, self._to, self._back = process, to, back
        self._number, self._rest = 0, b""
        self.seen: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._to, json.dumps({**message, "sessionId": session} if session else message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.seen.append(answer)

    def wait(self, method: str, session: str) -> None:
        """Wait for an event."""
        while not any(e["method"] == method and e.get("sessionId") == session for e in self.seen):
            answer = self._next()
            if "method" in answer:
                self.seen.append(answer)

    def page(self, *, online: bool = False) -> Page:
        """Return a new tab; without the network unless it is for a page that is served."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        return Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"], online=online)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._back, 1 << 16)
            if not piece:
                raise RuntimeError(f"{PROGRAM} ended")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Yield a Chromium with an empty profile in `folder`, which ends with the block."""
    (commands, to), (back, answers) = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (commands, answers)]  # out of the way of 3 and 4
    script = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", script, PROGRAM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        pass_fds=ends,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "HOME": str(folder), "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
    )
    for end in (commands, answers, *ends):
        os.close(end)
    try:
        yield Browser(process, to, back)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to)
        os.close(back)
