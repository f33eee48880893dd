"""Teams of threads for the kernel tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", params=[1, 2], ids=["1 thread", "2 threads"])
def team(request: pytest.FixtureRequest) -> Iterator[object]:
    from numba_kernels.cpu.team import Team

    team = Team(request.param)
    yield team
    team.close()
