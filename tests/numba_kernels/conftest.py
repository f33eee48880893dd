"""Teams of threads for the kernel tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
GUARDS = (
    os.environ.get("OSS_TOOLS_GUARDS") == "1"
)  # every array that kernels are given lies between guard bytes, see `guarded`


@pytest.fixture(autouse=GUARDS)
def guarded_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codec kernels between guards, too."""
    from guarded import guard_codec

    guard_codec(monkeypatch)


@pytest.fixture(scope="session", params=[1, 2], ids=["1 thread", "2 threads"])
def team(request: pytest.FixtureRequest) -> Iterator[object]:
    if GUARDS:
        from guarded import GuardedTeam as Team
    else:
        from numba_kernels.cpu.team import Team
    team = Team(request.param)
    yield team
    team.close()
