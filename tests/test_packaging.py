"""The wheel, installed into an environment of its own and run far from the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="needs the extra `dev`")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def oss_tools(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs the installed command in an empty folder and returns its stdout. Dependencies are this environment's."""
    home, elsewhere = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    where = [str(python), "-c", "import oss_tools; print(oss_tools.__file__)"]
    found = subprocess.run(where, check=True, capture_output=True, text=True, cwd=elsewhere, env=clean).stdout
    assert Path(found.strip()).is_relative_to(site)

    def run(*arguments: str) -> str:
        command = [str(home / "bin" / "oss-tools"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env=clean, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_wheel_holds_configurations_and_tasks(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "evals").rglob("*.yaml"), *(ROOT / "evals").rglob("*.jsonl")]
    carried = {f"oss_tools/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert carried
    page = {file.relative_to(ROOT).as_posix() for file in (ROOT / "oss_tools" / "serve" / "page").iterdir()}
    assert "oss_tools/serve/page/index.html" in page
    carried |= page
    assert carried <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/")) or "__pycache__" in name]


def test_the_installed_command_works_elsewhere(oss_tools: Callable[..., str]) -> None:
    assert "convert" in oss_tools("--help")
    oss_tools("synth", "gpt-oss-tiny", "tiny", "--quiet")
    assert json.loads(oss_tools("inspect", "tiny", "--json"))["model_type"] == "gpt_oss"
    oss_tools("convert", "tiny", "tiny.gguf", "--quiet")
    assert json.loads(oss_tools("verify", "tiny", "tiny.gguf", "--json"))["equal"]
    oss_tools("requantize", "tiny", "tiny-q8.gguf", "--recipe", "mxfp4-q8", "--quiet")
