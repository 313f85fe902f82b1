"""A headless Chromium for tests, driven over a pipe: the DevTools protocol as JSON, a zero byte after each message.

No driver, no port, no package: Debian's ``chromium`` is enough.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 120.0  # for one answer: software rendering on a busy machine
_FLAGS = (
    "--headless=new --no-sandbox --no-first-run --disable-extensions --disable-background-networking "
    "--disable-component-update --disable-sync --disable-gpu-shader-disk-cache --hide-scrollbars --mute-audio "
    "--use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --remote-debugging-pipe"
)


def find_chromium() -> str:
    """The browser; a test that needs it is skipped where it is absent, but never where CI runs."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no chromium: apt-get install --no-install-recommends chromium")
        pytest.skip("no chromium on this machine: apt-get install --no-install-recommends chromium")
    return found


class Tab:
    """One page.

    Attributes:
        complaints: what the page wrote on its console, threw, or was forbidden by its own policy.
        requests: every address that it asked for and that its policy did not stop.
    """

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._buffer = b""
        self._number = 0
        self._session = ""
        self._asked: dict[str, str] = {}
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        # Small, because every pixel of the viewer is computed in software.
        self._call("Emulation.setDeviceMetricsOverride", width=1000, height=640, deviceScaleFactor=1, mobile=False)

    def open(self, address: str) -> None:
        """Goes to an address and waits until everything is there."""
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that a selector finds."""
        found = json.dumps(selector)
        self.value(f"document.querySelector({found}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.value(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelector({found}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def key(self, name: str) -> None:
        """Presses a key, e.g. ``Escape``."""
        for kind in ("keyDown", "keyUp"):
            code = {"Escape": 27}.get(name, 0)
            self._call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def picture(self, selector: str = "", *, whole: bool = False) -> bytes:
        """PNG of what is seen, of the whole page, or of one element."""
        more: dict[str, Any] = {"captureBeyondViewport": whole}
        if selector:
            found = json.dumps(selector)
            box = self.value(
                f"(b => [b.x + scrollX, b.y + scrollY, b.width, b.height])"
                f"(document.querySelector({found}).getBoundingClientRect())"
            )
            more["clip"] = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
        elif whole:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            more["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        return base64.b64decode(self._call("Page.captureScreenshot", format="png", **more)["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._hear(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._back], [], [], SECONDS)
            assert ready, "chromium does not answer"
            piece = os.read(self._back, 1 << 20)
            assert piece, f"chromium ended with {self._process.poll()}"
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def _hear(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([part.get("value") for part in told["args"]]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(told["entry"]["text"])
            case "Page.javascriptDialogOpening":
                self.complaints.append(f"a dialog opened: {told['message']}")
                raise AssertionError(self.complaints[-1])
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"][:300])
                self._asked[told["requestId"]] = self.requests[-1]
            case "Network.loadingFailed" if told.get("blockedReason") == "csp":
                self.requests.remove(self._asked[told["requestId"]])


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A browser with one tab; it ends with the block.

    Args:
        profile: a fresh folder for its profile.
    """
    program = find_chromium()
    their_in, to = os.pipe()
    back, their_out = os.pipe()

    def place() -> None:  # the browser reads from 3 and writes to 4
        high_in, high_out = os.dup(their_in), os.dup(their_out)
        high_in, high_out = (n if n > 4 else os.dup(os.dup(os.dup(n))) for n in (high_in, high_out))
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    process = subprocess.Popen(
        [program, *_FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=place,
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Tab(process, to, back)
    finally:
        os.close(to)
        os.close(back)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
