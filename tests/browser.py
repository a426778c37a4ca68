"""A real browser to use a page with: headless Chromium, driven through its DevTools pipe.

https://chromedevtools.github.io/devtools-protocol/ says what the methods are.
"""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SILENT = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking"
PATIENCE = 120  # seconds to wait for an answer
# Chromium reads commands from descriptor 3 and answers on 4.
LAUNCH = "import os, sys; os.dup2({0}, 3); os.dup2({1}, 4); os.execv(sys.argv[1], sys.argv[1:])"
KEYS = {"Tab": 9, "End": 35, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}  # and their codes


def find_chromium() -> str | None:
    """Path of the browser, where there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. Used as a context, it ends with its processes and its profile."""

    def __enter__(self) -> "Browser":
        self.profile = tempfile.mkdtemp()
        out_of, self.into = os.pipe()
        self.answers, into = os.pipe()
        command = [find_chromium(), *SILENT.split(), "--remote-debugging-pipe", f"--user-data-dir={self.profile}"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH.format(out_of, into), *command, "about:blank"],
            pass_fds=(out_of, into),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(out_of), os.close(into)
        self.pending, self.number, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.into)  # which ends it, unless a process that was forked meanwhile holds it open too
        self.process.kill()
        self.process.wait()
        os.close(self.answers)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.pending:
            assert select.select([self.answers], [], [], PATIENCE)[0], "the browser doesn't answer"
            chunk = os.read(self.answers, 2**20)
            assert chunk, "the browser has ended"
            self.pending += chunk
        message, _, self.pending = self.pending.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Open a file in a window of this size, for a user who prefers this colour scheme, and wait until it is all
        there."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < height}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.settle()

    def settle(self) -> None:
        """Wait until every image in the page that is to be seen has been read, and the page drawn twice."""
        self.run(
            "(async () => {"
            " for (const image of document.images) if (image.loading !== 'lazy') await image.decode();"
            " for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);"
            "})()"
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, in the page."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press and release keys, as DevTools names them."""
        for key in keys:
            for kind in ("rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at a point, move it and release it."""
        for kind, (x, y), buttons in (
            ("mousePressed", start, 1),
            ("mouseMoved", end, 1),
            ("mouseReleased", end, 0),
        ):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)
        self.settle()

    def click(self, selector: str) -> None:
        """Click in the middle of an element, which is first brought into view."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y, width, height = self.box(selector)
        self.drag(middle := (x + width / 2, y + height / 2), middle)

    def box(self, selector: str) -> list[float]:
        """Left, top, width and height of an element in the window."""
        return self.run(
            f"(({{x, y, width, height}}) => [x, y, width, height])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )

    def screenshot(self) -> np.ndarray:
        """What the window shows: uint8 (H, W, 3)."""
        self.settle()
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
