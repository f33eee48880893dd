"""docs/extend.md: each file is put by itself into a copy of the program's tree, and what the page says of it is tried."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
NPY = """
import json, sys
from pathlib import Path
import numpy as np
from oss_tools.cli._options import embedded_model
from oss_tools.models import open_checkpoint

folder = Path(sys.argv[1])
folder.mkdir()
with open_checkpoint(embedded_model()) as tiny:
    for name in tiny.entries:
        np.save(folder / f"{name}.npy", tiny.read_tensor(name).dequantize())
    (folder / "config.json").write_text(json.dumps(tiny.reader.raw_config))
"""
ABOUT = """
from starlette.testclient import TestClient
from oss_tools.serve.app import create_app
from oss_tools.serve.settings import Settings
print(TestClient(create_app({}, Settings()), base_url="http://127.0.0.1:8000").get("/about").json())
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The program as links to its files, so that a file can be added and nothing else changes."""
    for top in ("oss_tools", "configs", "evals"):
        for folder, _, names in os.walk(ROOT / top):
            made = tmp_path / "tree" / Path(folder).relative_to(ROOT)
            made.mkdir(parents=True)
            for name in names:
                (made / name).symlink_to(Path(folder, name))
    (tmp_path / "tree" / "numba_kernels").symlink_to(ROOT / "numba_kernels")
    return tmp_path / "tree"


def with_file(tree: Path, name: str) -> None:
    assert not (tree / name).exists()
    (tree / name).write_text(FILES[name], encoding="utf-8")


def ran(tree: Path, *arguments: str, status: int = 0) -> str:
    """What Python says, with the tree first on its path."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def code(section: str) -> str:
    """The program that a section of the page runs with `python -c`."""
    found = re.search(rf'^## {section}$.*?^    \$ python -c "\n(.*?)"$', PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return re.sub("^    ", "", found[1], flags=re.MULTILINE)


def test_a_verb(tree: Path) -> None:
    with_file(tree, "oss_tools/cli/count.py")
    assert ran(tree, "-m", "oss_tools", "count", "tiny") == "values  2888784\n"
    assert "count" in ran(tree, "-m", "oss_tools", "--help")


def test_a_number_format(tree: Path) -> None:
    with_file(tree, "oss_tools/formats/sign.py")
    assert ran(tree, "-c", code("A number format")) == "[[ 2. -2.  2. -2.  2. -2.  2. -2.]]\n"
    look = "from oss_tools.convert.recipe import writable_formats; print('sign' in writable_formats())"
    assert ran(tree, "-c", look) == "True\n"


def test_a_container(tree: Path, tmp_path: Path) -> None:
    """Another container's program finds the same values in it."""
    with_file(tree, "oss_tools/checkpoints/npy.py")
    ran(tree, "-c", NPY, str(tmp_path / "npy"))
    assert "npy" in ran(tree, "-m", "oss_tools", "inspect", str(tmp_path / "npy"))
    ran(tree, "-m", "oss_tools", "verify", str(tmp_path / "npy"), "tiny", "--only", "tensors", "-q")
    damaged = next((tmp_path / "npy").glob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    ran(tree, "-m", "oss_tools", "inspect", str(tmp_path / "npy"), status=2)


@pytest.mark.parametrize(
    ("file", "section", "said"),
    [("parrot", "An architecture", "Parrot"), ("magpie", "A router", "Magpie.router")],
)
def test_an_architecture_and_a_router(tree: Path, file: str, section: str, said: str) -> None:
    with_file(tree, f"oss_tools/models/{file}.py")
    assert ran(tree, "-c", code(section)) == f"{said}\n"


def test_a_recipe(tree: Path, tmp_path: Path) -> None:
    with_file(tree, "configs/recipes/careful.yaml")
    line = ("convert", "tiny", str(tmp_path / "careful.gguf"), "--recipe", "careful", "--dry-run")
    assert "q4_0" in ran(tree, "-m", "oss_tools", *line)


def test_a_suite(tree: Path) -> None:
    pytest.importorskip("lm_eval")
    with_file(tree, "configs/suites/short.yaml")
    assert "short" in ran(tree, "-m", "oss_tools", "eval", "--list")


def test_a_backend(tree: Path) -> None:
    with_file(tree, "oss_tools/engine/patient_backend.py")
    look = "from oss_tools.engine.backend import backend_class; print(backend_class('patient').sequences)"
    assert ran(tree, "-c", look) == "1\n"


def test_an_api_of_the_server(tree: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("httpx")
    with_file(tree, "oss_tools/serve/api/about.py")
    assert ran(tree, "-c", ABOUT) == "{'program': 'oss-tools', 'models': []}\n"


def test_every_file_of_the_page_is_tried() -> None:
    tried = Path(__file__).read_text(encoding="utf-8")
    assert len(FILES) == 9
    assert not [name for name in FILES if Path(name).name not in tried and Path(name).stem not in ("parrot", "magpie")]
