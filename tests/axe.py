"""axe-core, which looks for what keeps people from using a page (https://github.com/dequelabs/axe-core)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from browser import Browser

RUN = "axe.run({resultTypes: ['violations']}).then(found => JSON.stringify(found.violations))"


def find_axe(cache: Path) -> Path | None:
    """The script that $AXE names, else npm's package, unpacked in `cache`; None without either."""
    if named := os.environ.get("AXE"):
        return Path(named)
    file = cache / "package" / "axe.min.js"
    if file.exists():
        return file
    if not shutil.which("npm"):
        return None
    cache.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["npm", "pack", "--silent", "axe-core@4"], cwd=cache, check=True, timeout=120, capture_output=True)
    except subprocess.SubprocessError:
        return None
    with tarfile.open(next(cache.glob("axe-core-*.tgz"))) as packed:
        packed.extract("package/axe.min.js", cache, filter="data")
    return file


def violations(browser: Browser, axe: Path) -> list[tuple[str, str, str]]:
    """(impact, rule, first element) of all that is wrong with the page as it stands."""
    browser.ask("Runtime.evaluate", expression=axe.read_text(encoding="utf-8"))
    answer = browser.ask("Runtime.evaluate", expression=RUN, awaitPromise=True, returnByValue=True)
    found: list[dict[str, Any]] = json.loads(answer["result"]["value"])
    return [(one["impact"], one["id"], one["nodes"][0]["html"]) for one in found]
