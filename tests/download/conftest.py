import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import Hub, serving

from oss_tools.download import failures, library
from tests.download.hostile_hub import TOKEN

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as running:
        yield running


def environment_for(hub: Hub, folder: Path) -> dict[str, str]:
    """Of a command that knows no other hub than the one on loopback, no user's token, and keeps its cache in a folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return kept | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """See `environment_for`."""
    return environment_for(hub, tmp_path)


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    def run(*arguments: object, env: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "oss_tools", *map(str, arguments)]
        options = {"cwd": tmp_path, "timeout": 120, **options}
        return subprocess.run(command, capture_output=True, text=True, env=environment | (env or {}), **options)

    return run


@pytest.fixture
def with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has a token for the hub; waits are none."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(failures.time, "sleep", lambda seconds: None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers and documents have 0.9 seconds."""
    monkeypatch.setattr(library.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.15)
