"""Programs of our own that are started import nothing from the folder in which the user stands: it may be a stranger's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import numba_kernels
import oss_tools

SOURCES = [path for module in (oss_tools, numba_kernels) for path in Path(str(module.__file__)).parent.rglob("*.py")]
STARTS = {
    "a contender": "from oss_tools.measure.worker import Child; Child('none')",
    "the peak of memory": "from oss_tools.measure.peak import peak_bytes; peak_bytes(__import__('pathlib').Path('none'), 8, 1)",
    "the start": "from oss_tools.measure import start; start.first_token_seconds('none', 1, __import__('pathlib').Path('cache'))",
    "a conversion": "from oss_tools.measure.conversion import child, tool; child(tool('inspect', 'none'))",
    "the GPU's parts": "from oss_tools.measure.cuda import in_process; in_process('none', 60)",
}


@pytest.mark.parametrize("what", STARTS)
def test_a_stranger_s_folder_is_not_imported_from(tmp_path: Path, what: str) -> None:
    for name in ("oss_tools", "numba_kernels", "numpy", "json", "argparse", "typer", "yaml", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath('taken').touch()\nraise SystemExit\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", STARTS[what]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert not (tmp_path / "taken").exists()
    assert "ImportError" not in done.stderr
    assert "AttributeError" not in done.stderr


def test_every_start_of_python_leaves_the_working_folder_out() -> None:
    starts = [
        (path.name, start)
        for path in SOURCES
        for start in re.findall(r"sys\.executable,\s*\"[^\"]*\"", path.read_text("utf-8"))
    ]
    assert len(starts) > 5
    assert [start for start in starts if not start[1].endswith(('"-I"', '"-P"'))] == []
