"""The kernels in Numba's simulator, where every thread is a thread of Python and every PTX instruction its plain form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from numba_kernels.cuda.seam import SIMULATED

HERE = Path(__file__).parent
FILES = [HERE / f"test_cuda_{name}.py" for name in ("kernels", "experts", "attention", "prefill", "families_kernels")]


@pytest.mark.slow
@pytest.mark.skipif(SIMULATED, reason="this is the simulator")
def test_in_the_simulator() -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", "-p", "no:cacheprovider", *map(str, FILES)]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
