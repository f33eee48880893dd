"""Compiled kernels, whose index is a pickle, are never looked for where somebody else could have put them."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from numba_kernels.cache_folder import fresh_folder, private_folder

STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
CHOICE = """
import os, pathlib, sys, tempfile
if sys.argv[1:]:
    tempfile.tempdir = sys.argv[1]
    def none(cls): raise RuntimeError
    pathlib.Path.home = classmethod(none)
import numba_kernels
place = pathlib.Path(os.environ["NUMBA_CACHE_DIR"])
print(place, oct(place.stat().st_mode & 0o777), numba_kernels.NOT_KEPT)
"""


def chosen(*without_home: Path, **variables: str) -> tuple[Path, str]:
    """The folder that a new process takes, and its mode there; without a home folder, with this temporary one."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    run = subprocess.run(
        [sys.executable, "-c", CHOICE, *map(str, without_home)],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    place, mode, *reason = run.stdout.split()
    assert bool(reason) == Path(place).name.startswith("kernels-"), "a fresh folder is explained"
    return Path(place), mode


def planted(folder: Path, mode: int = 0o755) -> Path:
    """A file in a folder of this mode."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.nbi").write_bytes(b"cos\nsystem\n(S'touch planted'\ntR.")
    folder.chmod(mode)
    return folder / "index.nbi"


def test_what_is_made_is_the_user_s_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        folder = private_folder(tmp_path / "cache", "oss-tools", "kernels")
    finally:
        os.umask(old)
    assert folder == tmp_path / "cache" / "oss-tools" / "kernels"
    assert {stat.S_IMODE(way.stat().st_mode) for way in (folder, folder.parent, folder.parent.parent)} == {0o700}
    kept = planted(folder)
    assert private_folder(tmp_path / "cache", "oss-tools", "kernels") == folder
    assert kept.exists()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
@pytest.mark.parametrize("level", ["oss-tools", "oss-tools/kernels", "oss-tools/kernels/codec"])
def test_what_others_could_write_in_is_emptied_and_closed(tmp_path: Path, mode: int, level: str) -> None:
    (tmp_path / "oss-tools" / "kernels").mkdir(parents=True)
    file = planted(tmp_path / level, mode)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / level / "link").symlink_to(elsewhere)
    folder = private_folder(tmp_path, "oss-tools", "kernels")
    assert folder is not None
    assert not file.exists()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert (elsewhere / "kept").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    planted(tmp_path / "theirs")
    (tmp_path / "cache" / "oss-tools").mkdir(parents=True)
    (tmp_path / "cache" / "oss-tools" / "kernels").symlink_to(tmp_path / "theirs")
    assert private_folder(tmp_path / "cache", "oss-tools", "kernels") is None


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_a_folder_above_that_others_may_rename_in_is_not_gone_through(tmp_path: Path, mode: int) -> None:
    (tmp_path / "shared" / "cache").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "shared" / "cache")
    (tmp_path / "shared").chmod(mode)
    assert private_folder(tmp_path / "shared" / "cache", "oss-tools") is None
    assert private_folder(tmp_path / "link", "oss-tools") is None
    (tmp_path / "shared").chmod(mode | stat.S_ISVTX)  # as /tmp is
    assert private_folder(tmp_path / "link", "oss-tools") is not None


@as_root
@pytest.mark.parametrize("level", ["cache", "cache/oss-tools", "cache/oss-tools/kernels"])
def test_what_belongs_to_somebody_else_is_not_used(tmp_path: Path, level: str) -> None:
    file = planted(tmp_path / "cache" / "oss-tools" / "kernels")
    os.chown(tmp_path / level, STRANGER, STRANGER)
    folder = private_folder(tmp_path / "cache", "oss-tools", "kernels")
    if level.endswith("kernels"):  # it lay in the user's own folder, and is removed from there
        assert folder == file.parent
        assert (folder.stat().st_uid, list(folder.iterdir())) == (os.geteuid(), [])
    else:
        assert folder is None


def test_a_file_in_the_way_or_a_name_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "oss-tools").touch()
    assert private_folder(tmp_path, "oss-tools") is None
    assert private_folder(tmp_path / "oss-tools", "kernels") is None
    assert private_folder(Path(f"{tmp_path}/a\0b"), "kernels") is None


def test_without_a_home_no_guessable_folder_is_used_and_nothing_stays(tmp_path: Path) -> None:
    names = [f"oss-tools-{os.getuid()}", f"oss-tools-{os.getuid()}/.cache/oss-tools"]
    for name in names:
        planted(tmp_path / name, 0o777)
    before = sorted(tmp_path.iterdir())
    place, mode = chosen(tmp_path)
    assert place.parent == tmp_path
    assert place not in before
    assert mode == "0o700"
    assert sorted(tmp_path.iterdir()) == before
    assert chosen(tmp_path)[0] != place


def test_a_shared_cache_gives_way_to_a_fresh_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    place, mode = chosen(XDG_CACHE_HOME=str(tmp_path))
    assert not place.is_relative_to(tmp_path)
    assert mode == "0o700"
    assert not place.exists()


def test_a_fresh_folder_is_not_made_where_others_could_rename_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fresh_folder().parent != tmp_path


def test_a_folder_that_the_user_names_is_the_user_s_business(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert chosen(NUMBA_CACHE_DIR=str(tmp_path))[0] == tmp_path
