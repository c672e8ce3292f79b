"""A headless Chromium, led through the DevTools protocol over a pipe: nothing but the browser itself is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-pipe",
)
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_browser() -> str | None:
    """The browser's file; None if none is installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One page of a browser of its own.

    Attributes:
        requests: addresses of everything the page asked for.
        errors: what its scripts threw, and what the browser complained about.
    """

    def __init__(self, executable: str, profile: Path, *, patience: float = 60):
        """
        Args:
            profile: an empty folder for the browser's own files.
            patience: seconds to wait for anything.
        """
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._patience = patience
        self._count = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._left = b""
        browser_reads, self._out = os.pipe()
        self._in, browser_writes = os.pipe()
        # the browser reads from 3 and writes to 4; higher numbers until then, so that neither is in the other's way
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (browser_reads, browser_writes)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, ends), executable, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (browser_reads, browser_writes, *ends):
            os.close(end)
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._out)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self._patience
        while self._count not in self._answers:
            self._receive(end - time.monotonic())
        answer = self._answers.pop(self._count)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self, seconds: float) -> None:
        """Take in what the browser says; an AssertionError if it says nothing in that time."""
        ready, _, _ = select.select([self._in], [], [], max(0.0, seconds))
        said = os.read(self._in, 1 << 20) if ready else b""
        assert said, "the browser says nothing any more"
        *messages, self._left = (self._left + said).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, event: str, what: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.errors.append(f"{what['entry']['text']} {what['entry'].get('url', '')}".strip())

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_until(self, script: str) -> None:
        """Wait until a JavaScript expression is true, in JavaScript's sense."""
        end = time.monotonic() + self._patience
        while not self.evaluate(f"!!({script})"):
            if time.monotonic() > end:
                raise AssertionError(f"waited in vain until {script}; the page shows:\n{self.text('body')}")
            time.sleep(0.1)

    def go_to(self, address: str, *, width: int, height: int) -> None:
        """Open a page in a window of that size, CSS pixels."""
        self.resize(width, height)
        self.send("Page.navigate", url=address)

    def resize(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def text(self, selector: str) -> str:
        """What a person reads in an element."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector: str, text: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.send("Input.insertText", text=text)

    def click_at(self, selector: str, right: float, down: float) -> None:
        """Click with the mouse within an element, at these shares of its width and height."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{place}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.evaluate(f"(b => [b.x, b.y, b.width, b.height])({place}.getBoundingClientRect())")
        at: dict[str, Any] = {
            "x": box[0] + right * box[2],
            "y": box[1] + down * box[3],
            "button": "left",
            "clickCount": 1,
        }
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **at)

    def press_enter(self) -> None:
        self.press("Enter", 13, text="\r")

    def press(self, name: str, code: int, **more: str) -> None:
        """Press a key by its name and its Windows code."""
        key = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **more, **key)
        self.send("Input.dispatchKeyEvent", type="keyUp", **key)

    def choose_file(self, selector: str, file: Path) -> None:
        """Give a file to an ``<input type="file">``."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        assert node, f"there is no {selector}"
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self, file: Path, *, whole_page: bool = True) -> None:
        image = self.send("Page.captureScreenshot", captureBeyondViewport=whole_page)["data"]
        file.write_bytes(base64.b64decode(image))
