"""A headless Chromium, spoken to over a pipe in its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

python tests/browser.py PAGE PICTURE [--width 1280] [--height 900] makes a picture of the upper part of a page.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
UNPACK = """
const fs = require('fs'), zlib = require('zlib');
fs.writeFileSync('chromium', zlib.brotliDecompressSync(fs.readFileSync(process.argv[1])), {mode: 0o755});
fs.writeFileSync('libraries.tar', zlib.brotliDecompressSync(fs.readFileSync(process.argv[2])));
"""


def find_chromium(cache: Path) -> Path | None:
    """The Chromium of $CHROMIUM or the path, else npm's @sparticuz/chromium, unpacked in `cache`; None without either."""
    named = os.environ.get("CHROMIUM")
    found = [named] if named else [path for name in NAMES if (path := shutil.which(name))]
    return Path(found[0]) if found else fetch_chromium(cache)


def fetch_chromium(cache: Path) -> Path | None:
    """npm's package is a browser and its libraries, compressed; nothing in it runs on installation."""
    if (cache / "chromium").exists():
        return cache / "chromium"
    if not shutil.which("npm") or not shutil.which("node"):
        return None
    cache.mkdir(parents=True, exist_ok=True)
    install = [
        "npm",
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--prefix",
        ".",
        "@sparticuz/chromium",
    ]
    try:
        subprocess.run(install, cwd=cache, check=True, timeout=300, capture_output=True)
        parts = Path("node_modules/@sparticuz/chromium/bin")
        unpack = ["node", "-e", UNPACK, str(parts / "chromium.br"), str(parts / "al2023.tar.br")]
        subprocess.run(unpack, cwd=cache, check=True, timeout=300, capture_output=True)
        subprocess.run(["tar", "-xf", "libraries.tar"], cwd=cache, check=True, timeout=60)
    except subprocess.SubprocessError:
        return None
    return cache / "chromium"


class Browser:
    """One page in one process.

    Attributes:
        events: everything the browser said by itself, as (method, parameters).
    """

    def __init__(self, program: Path, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        arguments = [
            str(program), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
            "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--no-first-run",
            f"--user-data-dir={profile}",
        ]  # fmt: skip
        libraries = f"{program.parent / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        # the browser reads its file descriptor 3 and writes to 4
        shell = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *arguments],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LD_LIBRARY_PATH": libraries} if (program.parent / "lib").exists() else None,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._number, self._buffer = 0, b""
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._out)
        os.close(self._in)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._read_until(lambda message: message.get("id") == self._number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read_until(self, wanted: Callable[[dict[str, Any]], bool], timeout: float = 60) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while True:
            while b"\0" in self._buffer:
                text, _, self._buffer = self._buffer.partition(b"\0")
                message = json.loads(text)
                if "method" in message:
                    self.events.append((message["method"], message.get("params", {})))
                if wanted(message):
                    return message
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {timeout} s"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser ended"
            self._buffer += chunk

    def open(self, url: str, width: int, height: int = 900, scheme: str = "light") -> None:
        """Loads a page in a window of this size and colour scheme; `events` begins anew."""
        self.events.clear()
        mobile = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=url)
        if not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._read_until(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, file: Path, height: int | None = None) -> Path:
        """The whole page as PNG, or so many pixels of it from above."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        data = self.ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))
        return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    given = parser.parse_args()
    program = find_chromium(Path(__file__).parents[1] / "build" / "chromium")
    if program is None:
        sys.exit("no Chromium: install one, or node and npm, which fetch it")
    with tempfile.TemporaryDirectory() as profile, Browser(program, Path(profile)) as browser:
        browser.open(given.page.resolve().as_uri(), given.width, given.height)
        browser.screenshot(given.picture, given.height)


if __name__ == "__main__":
    main()
