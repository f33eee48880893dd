"""What is kept on the disk, and how it is removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def cache(home: Path, *options: str, **environment: str) -> tuple[list[dict[str, Any]], str]:
    """What `oss-tools cache --json` prints, and says, with an empty home."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE")}
    named = {"XDG_CACHE_HOME": str(home), "HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HOME": str(home / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", "oss_tools", "cache", "--json", *options],
        env=inherited | named | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["kept"], done.stderr


def filled(folder: Path) -> Path:
    """A folder with kernels."""
    (folder / "cpu_1").mkdir(parents=True)
    (folder / "cpu_1" / "linear.nbi").write_bytes(bytes(10))
    (folder / "cpu_1" / "linear.nbc").write_bytes(bytes(90))
    return folder


def test_kernels_are_listed_and_removed(tmp_path: Path) -> None:
    (own, _), _ = cache(tmp_path)
    assert own["what"] == "kernels"
    assert own["bytes"] == 0
    folder = Path(own["path"])
    assert folder.parent == tmp_path / "oss-tools"
    filled(folder)
    old = filled(folder.parent / "numba-0.60.0-0123456789ab")
    (tmp_path / "kernels of mine").mkdir()
    (folder.parent / "numba-link").symlink_to(tmp_path / "kernels of mine")
    (tmp_path / "kernels of mine" / "one").write_bytes(bytes(7))
    (folder.parent / "hashes.json").write_text("{}")
    found, _ = cache(tmp_path)
    assert [(k["what"], k["bytes"], k["files"]) for k in found] == [
        ("kernels", 100, 2), ("kernels of other versions", 100, 2), ("downloads", 0, 0),
    ]  # fmt: skip
    found, said = cache(tmp_path, "--clear")
    assert [k["bytes"] for k in found] == [0, 0]
    assert "removed 4 files" in said
    assert not old.exists()
    assert (folder / "cpu_1").is_dir()  # where somebody may be about to put one
    assert (tmp_path / "kernels of mine" / "one").exists()
    assert (folder.parent / "hashes.json").exists()


def test_a_folder_of_the_users_choice_is_left_alone(tmp_path: Path) -> None:
    chosen = filled(tmp_path / "chosen")
    found, said = cache(tmp_path, "--clear", NUMBA_CACHE_DIR=str(chosen))
    assert (found[0]["what"], found[0]["bytes"], found[0]["path"]) == ("kernels", 100, str(chosen))
    assert "leaves it alone" in said


def test_downloads_are_counted_once(tmp_path: Path) -> None:
    """The hub's cache has links to its files."""
    blobs = tmp_path / "hub" / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "1").write_bytes(bytes(50))
    (blobs.parent / "model.safetensors").symlink_to(blobs / "1")
    found, _ = cache(tmp_path, "--clear")
    assert found[-1]["what"] == "downloads"
    assert (found[-1]["bytes"], found[-1]["files"]) == (50, 1)
