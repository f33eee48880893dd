"""Facts about this machine and its software, for the records that carry figures."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from numba_kernels.parallel import cores
from oss_tools import __version__


def machine() -> dict[str, Any]:
    """Processor, cores available to this process, memory in bytes, operating system."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of this program, and of the named packages that are installed."""
    found = {"python": platform.python_version(), "oss-tools": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    """The processor as the system names it, with family and model, since hypervisors shorten the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.processor())
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name
