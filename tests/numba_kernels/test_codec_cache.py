"""Compiled kernels are kept in the user's cache folder, and Numba is imported only when a kernel is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def printed(code: str, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


@pytest.mark.skipif(sys.platform == "darwin", reason="the folder follows XDG on Linux only")
def test_cache_folder(tmp_path: Path) -> None:
    from numba import __version__

    code = "import os, sys, numba_kernels; print(os.environ['NUMBA_CACHE_DIR'], 'numba' in sys.modules)"
    for variables, root in (
        ({"XDG_CACHE_HOME": str(tmp_path)}, tmp_path),
        ({"XDG_CACHE_HOME": "", "HOME": str(tmp_path)}, tmp_path / ".cache"),
    ):
        pattern = rf"{re.escape(str(root))}/oss-tools/numba-{re.escape(__version__)}-[0-9a-f]{{12}} False"
        assert re.fullmatch(pattern, printed(code, **variables))
    assert printed(code, NUMBA_CACHE_DIR="/elsewhere") == "/elsewhere False"


def test_kernels_are_cached_there(tmp_path: Path) -> None:
    code = "import numpy as np; from numba_kernels.codec.finite import nonfinite_count as n; print(n(np.ones(3, 'f4')))"
    assert printed(code, NUMBA_CACHE_DIR=str(tmp_path)) == "0"
    assert list(tmp_path.rglob("*.nbi"))
