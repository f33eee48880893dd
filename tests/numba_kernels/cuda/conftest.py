"""The kernels' tests need the package numba-cuda, but no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

if importlib.util.find_spec("numba_cuda") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh numbers each time."""
    return np.random.default_rng()
