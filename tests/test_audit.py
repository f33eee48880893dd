""".ci/audit finds what it is there to find, and the list it reads is in order."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def audit(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, root / ".ci" / "audit"], capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    for name in (".ci/audit", ".ci/advisories.toml", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_no_version_of_ours_is_affected() -> None:
    done = audit(ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_affected_pin_is_found(copy: Path) -> None:
    change(copy / "constraints.txt", "urllib3==", "urllib3==2.5.0 # was ")
    done = audit(copy)
    assert done.returncode == 1
    assert "constraints.txt: urllib3 2.5.0: " in done.stderr
    assert "CVE-2026-44431" in done.stderr


def test_an_affected_lower_bound_is_found(copy: Path) -> None:
    change(copy / "pyproject.toml", "jinja2>=3.1.6", "Jinja2>=3.1.5")
    done = audit(copy)
    assert done.returncode == 1
    assert "pyproject.toml allows jinja2 3.1.5: " in done.stderr
    assert "GHSA-cpwx-vrp4-4pq7" in done.stderr


def test_an_excuse_counts_and_a_misspelt_name_does_not(copy: Path) -> None:
    change(copy / ".ci" / "advisories.toml", "excused = ", "note = ")
    assert "diskcache 5.6.3" in audit(copy).stderr
    change(copy / ".ci" / "advisories.toml", 'package = "h11"', 'package = "h12"')
    assert "advisories.toml: h12 is not in constraints.txt" in audit(copy).stderr


def test_the_list_is_in_order() -> None:
    for advisory in tomllib.loads((ROOT / ".ci" / "advisories.toml").read_text())["advisory"]:
        assert advisory.keys() <= {"package", "affected", "ids", "what", "excused"}
        assert advisory["ids"]
        assert advisory["what"]
        assert list(SpecifierSet(advisory["affected"])), "all versions"
