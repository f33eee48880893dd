"""Without a package of an extra: one line that says what to install, status 3, before any work is done."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
from oss_tools.cli.main import main
main()
"""


def run(packages: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    """The program where these packages cannot be imported."""
    command = [sys.executable, "-c", HIDDEN.format(packages=packages), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("packages", "arguments", "advice"),
    [
        (("scipy",), ["compare", "MODEL", "--suites", "", "-o", "OUT"], ".[eval]"),
        (("scipy", "lm_eval"), ["compare", "tiny", "-o", "OUT"], ".[eval]"),
        (("lm_eval",), ["compare", "MODEL", "MODEL", "-o", "OUT"], ".[eval]"),
        (("lm_eval",), ["eval", "MODEL", "--suite", "text", "--output", "OUT"], ".[eval]"),
        (("lm_eval",), ["eval", "MODEL", "--dry-run"], ".[eval]"),
        (("torch",), ["generate", "MODEL", "Hello", "--backend", "torch"], ".[torch]"),
        (("torch",), ["compare", "MODEL", "--suites", "", "--backend", "torch", "-o", "OUT"], ".[torch]"),
        (("torch",), ["bench", "MODEL", "--backend", "torch"], ".[torch]"),
        (("llama_cpp",), ["bench", "MODEL", "--peer", "llama.cpp"], ".[peers]"),
        (("ik_llama_cpp",), ["bench", "MODEL", "--peer", "ik_llama.cpp"], ".[ik]"),
        (("numba_cuda",), ["generate", "MODEL", "Hello", "--device", "cuda"], ".[cuda]"),
    ],
    ids=lambda value: (
        " ".join(value[:1]) if isinstance(value, list) else ",".join(value) if isinstance(value, tuple) else ""
    ),
)
def test_a_missing_extra_is_one_line(
    tiny_llama: Path, tmp_path: Path, packages: tuple[str, ...], arguments: list[str], advice: str
) -> None:
    names = {"MODEL": tiny_llama, "OUT": tmp_path / "out"}
    done = run(packages, *(names.get(argument, argument) for argument in arguments))
    assert done.returncode == 3, done.stderr
    assert f"pip install '{advice}' in a clone of oss-tools" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_gate_that_needs_statistics_says_so(tmp_path: Path) -> None:
    sample = Path(__file__).parents[1] / "report" / "sample-comparison.json"
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules: [{metric: 'task.*', difference: baseline, min: -0.5}]\n")
    page = tmp_path / "page.html"
    done = run(("scipy",), "report", sample, "--gate", gate, "--baseline", sample, "--html", page)
    assert (done.returncode, "pip install '.[eval]'" in done.stderr) == (3, True), done.stderr
    assert not page.exists()
    assert run(("scipy", "lm_eval"), "report", sample, "--gate", "default").returncode in (0, 1)  # needs none


def test_no_name_is_recommended_that_a_public_index_could_give_to_anybody() -> None:
    root = Path(__file__).parents[2]
    files = [*root.glob("oss_tools/**/*.py"), *root.glob("docs/**/*.md"), *root.glob("*.md"), root / "action.yml"]
    found = [str(file) for file in files if re.search(r"install[^\n]*['\" ]oss-tools\[", file.read_text(encoding="utf-8"))]
    assert len(files) > 100
    assert found == []
